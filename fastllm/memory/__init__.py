"""How much memory will a model take, and does that fit? And the memory itself, in large pieces.

========  =====================================================================================
`ledger`  what is taken for what, the sum, and the longest context that fits; integers only
`arena`   one private huge-page region, handed out piece by piece: weights, KV cache, rings
`pages`   who maps it: the compiled extension or its twin
========  =====================================================================================
"""
