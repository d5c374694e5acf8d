"""How much do a few learned pictures teach a new network, beside as many real ones and beside all of them?"""
