"""Training a detector on as it is, so that a pruned one finds again what it found before.

settings = FinetuneSettings(epochs=20, imgsz=640)
result = finetune(network, TrainingData(read_coco("instances.json", "images")), settings, workdir)
"""
