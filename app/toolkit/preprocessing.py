"""placeholder: how a model's images become its input"""
