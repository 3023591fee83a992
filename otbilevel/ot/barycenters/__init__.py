"""Wasserstein barycentres: of histograms on a fixed support, and of point clouds with a support that moves.

With log scalings G_k = g_k / reg on the n points of the barycentre and K = exp(-C / reg), the plan of input k with exact rows is

    P_k = diag(u_k) K diag(exp G_k),   u_k = a_k / (K exp G_k),   columns c_k = exp(G_k) K' u_k.

The barycentre of Benamou et al. (2015) minimises sum_k w_k (<P_k, C> + reg sum P_k log P_k) over plans with rows a_k and a common
column sum b. Its dual is over potentials with sum_k w_k g_k = 0,

    maximise sum_k w_k <a_k, f_k(g_k)>,   f_k = -reg log(K exp G_k),   gradient (-w_k c_k)_k, Hessian -(1/reg) diag(w_k L_k),

with the Laplacians L_k = diag(c_k) - K_k' diag(a_k) K_k of `row_plan`. The multiplier of the constraint is b.
"""
