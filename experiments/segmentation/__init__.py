"""Segmentation under a change of style and under corruptions: how much robustness does a method keep?"""
