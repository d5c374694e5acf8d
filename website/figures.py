"""Every figure is a link to its full size, also where a page does not say so. A Markdown extension."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor


class LinkFigures(Treeprocessor):
    """Puts an image that is in no link into one to its file."""

    def run(self, root: Element) -> None:
        """Called with the page's tree."""
        for parent in list(root.iter()):
            for place, image in enumerate(parent):
                if image.tag == "img" and parent.tag != "a":
                    link = Element("a", href=image.get("src", ""))
                    link.tail, image.tail = image.tail, None
                    link.append(image)
                    parent[place] = link


class Figures(Extension):
    """Comes after inline Markdown (priority 20), which makes the images."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Called by Python-Markdown."""
        md.treeprocessors.register(LinkFigures(md), "figures", 15)


def makeExtension(**settings: object) -> Figures:
    """Python-Markdown's name for what makes an extension."""
    return Figures(**settings)
