"""How much memory will a model take, and does that fit? Integers only; nothing is allocated here.

========  =====================================================================================
`ledger`  what is taken for what, the sum, and the longest context that fits
========  =====================================================================================
"""
