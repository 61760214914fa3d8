"""The package's metadata: links that resolve outside the repository."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_link_of_the_published_readme_is_relative() -> None:
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    published = README
    for rule in hook["substitutions"]:
        published = re.sub(rule["pattern"], rule["replacement"], published)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)#]+)\)", published)
    assert len(links) == len(re.findall(r"\]\((?!#)", README))
    assert all(link.startswith("https://") for _, link in links)
    pictures = [link for mark, link in links if mark]
    assert pictures
    assert all(link.startswith("https://raw.githubusercontent.com/") for link in pictures)


def test_every_address_is_of_one_repository() -> None:
    urls = PROJECT["project"]["urls"]
    assert {"Homepage", "Source", "Documentation", "Changelog"} <= set(urls)
    assert all(url.startswith(urls["Source"]) for url in urls.values())
