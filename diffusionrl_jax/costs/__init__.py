"""What the benchmark program measures.

It compiles programs for chips that are not there, and times warm iterations on devices that are.
"""
