"""How good the lists are: ranks, HR and NDCG with intervals, the evaluate stage."""
