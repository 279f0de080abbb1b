// The module's table of contents; each part is bound in a file of its own beside this one.
#include "bind.h"

PYBIND11_MODULE(_C, m) {
    m.doc() =
        "Compiled parts of sftrl_fast. The card functions are safe for any input. Those that take addresses "
        "trust "
        "their callers in sftrl_fast.ops, which check shapes, types and ranges.";
    sftrl::bind::points(m);
    sftrl::bind::machine(m);
    sftrl::bind::fingerprint(m);
    sftrl::bind::decoder_layers(m);
    sftrl::bind::rms_norm(m);
    sftrl::bind::advantage(m);
    sftrl::bind::packed_attention(m);
    sftrl::bind::sample(m);
    sftrl::bind::linear(m);
    sftrl::bind::logprob(m);
    sftrl::bind::cached_attention(m);
    sftrl::bind::rope_cache(m);
    sftrl::bind::swiglu(m);
    sftrl::bind::image_tiles(m);
}
