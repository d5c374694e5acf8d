"""Study: the styles learnt one after the other; how much of the earlier ones is kept?"""
