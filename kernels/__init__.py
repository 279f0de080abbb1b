"""Triton kernels: the only place that imports triton. Each file names its block sizes at the top and gives, in
``COMPILE_CASES``, every configuration that the product launches, and in ``WORK`` what they must move and do."""
