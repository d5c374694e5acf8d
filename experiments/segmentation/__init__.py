"""Which class does every pixel show? Scenes of emoji over photographs."""
