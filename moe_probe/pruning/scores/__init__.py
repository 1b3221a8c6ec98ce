"""Expert scores, one file each, which defines a `Score` and gives it its name.

Symbols in formulas: T is the number of rows (tokens, or sub-tokens), S_e the set of rows that chose expert e, p_e the
affinity (softmax over all experts, sigmoid, ..., without correction bias), w_e the weight that the model applies,
f_e(x) the expert's unweighted output, z the weighted sum of the routed experts, and |.| the L2 norm.
"""
