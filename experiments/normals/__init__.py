"""Surface normals of drawn scenes: fine-tuned on some textures and lights, tested on others and under corruptions."""
