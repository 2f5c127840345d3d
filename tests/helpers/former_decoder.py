"""The convolutional decoder as it started when the golden hashes were made."""

from aae_dist.models.conv import ConvDecoder, Doubling


class FormerDoubling(Doubling):
    def start_as_upsampling(self) -> None:
        """Keep the kernel that the layer drew."""


class FormerDecoder(ConvDecoder):
    doubling = FormerDoubling
