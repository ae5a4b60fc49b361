"""A page to try things on: drop a photograph, ask its patches, switch latents off and see what the model then says."""
