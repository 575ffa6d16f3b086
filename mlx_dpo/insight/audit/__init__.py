"""Is a preference file fit to train on?"""
