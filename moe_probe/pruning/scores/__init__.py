"""Expert scores, one file each: a class that is a `Score`, found by the name of its file.

T rows (tokens, or sub-tokens), S_e those that chose expert e; p_e the affinity (softmax over all experts, sigmoid, ...,
without correction bias), w_e the weight that the model applies, f_e(x) the expert's unweighted output, z the weighted
sum of the routed experts; |.| is the L2 norm.
"""
