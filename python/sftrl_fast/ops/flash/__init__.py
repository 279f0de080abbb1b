"""Attention by the FlashAttention packages on CUDA, for the parts they cover: whole segments, and a shared prefix.

None of the packages knows of a prefix that several sequences share. So attention over the prefix and over the own
tokens are two calls, brought together by the logarithms of their sums of weights. ``packages`` says which package
serves on this machine, ``calls`` holds every call that is made of one.
"""
