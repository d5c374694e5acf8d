"""What does FTP's one-step hypergradient give up against the full one, and what does it save?"""
