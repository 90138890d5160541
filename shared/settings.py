"""Every setting of Darkroom, with its default and help. Read once at an entry point and passed down.

Each is an environment variable with the prefix `DARKROOM_`: `redis_url` is `DARKROOM_REDIS_URL`. `docs/operations.md`
lists this table and a test keeps the two equal. TORCH_HOME is torch's own: where pretrained weights are cached.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import DarkroomError

Key = Annotated[
    str, StringConstraints(strip_whitespace=True, pattern=r"^[!-~]*$")
]  # of a service: it becomes part of a header or an address


class Settings(BaseSettings):
    """All settings. Raises pydantic's ValidationError for a value that does not fit; use `load` for a sentence."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", frozen=True, env_ignore_empty=True)

    redis_url: str | None = Field(
        None, description="Redis of the queue and the ledger; unset: `darkroom up` starts one of its own in the storage folder"
    )
    storage: str = Field("darkroom-data", description="folder or fsspec URL (s3://bucket/prefix) for images, datasets, models and results")
    cache: Path = Field(
        Path("~/.cache/darkroom"), description="local folder for what can be made again: prepared images, copies of remote files"
    )
    host: str = Field(
        "127.0.0.1", description="address the web listens on; anything but loopback needs `allowed_hosts`, and there are no accounts yet"
    )
    port: int = Field(8000, ge=1, le=65535, description="port the web listens on")
    allowed_hosts: list[str] = Field([], description="host names the web answers to besides localhost, as a JSON list")
    secret_key: str | None = Field(None, description="signs form tokens; unset: made once and kept in the storage folder")
    import_roots: list[str] | None = Field(
        None,
        description="server folders and bucket addresses (s3://bucket/prefix) that may be imported or classified, as a JSON list; "
        "unset: any folder on a loopback address, none otherwise, and no bucket",
    )
    max_upload_bytes: int = Field(20 * 2**30, ge=1, description="largest upload, bytes")
    max_zip_members: int = Field(1_000_000, ge=1, description="most files in one zip")
    max_image_bytes: int = Field(50 * 2**20, ge=1, description="largest single image file, bytes")
    max_model_bytes: int = Field(4 * 2**30, ge=1, description="largest file of weights of a model that is imported, bytes")
    url: str = Field("http://127.0.0.1:8000", description="address of the web, for the command line")
    operator_contact: str = Field(
        "", description="web address or e-mail of whoever runs this installation; Wikimedia Commons requires it in the User-Agent"
    )
    openverse_url: str = Field("https://api.openverse.org/v1/images/", description="search address of Openverse")
    openverse_client_id: Key = Field("", description="client id of a registered user of Openverse, who may ask more often; with its secret")
    openverse_client_secret: Key = Field("", repr=False, description="client secret of that user")
    commons_url: str = Field("https://commons.wikimedia.org/w/api.php", description="API address of Wikimedia Commons")
    flickr_url: str = Field("https://api.flickr.com/services/rest/", description="API address of Flickr")
    flickr_key: Key = Field("", repr=False, description="API key of Flickr, without which it is not searched")
    brave_url: str = Field("https://api.search.brave.com/res/v1/images/search", description="image search address of Brave")
    brave_key: Key = Field("", repr=False, description="subscription token of Brave Search, without which it is not searched")
    serpapi_url: str = Field("https://serpapi.com/search.json", description="search address of SerpApi")
    serpapi_key: Key = Field("", repr=False, description="API key of SerpApi, without which it is not searched")
    google_url: str = Field("https://customsearch.googleapis.com/customsearch/v1", description="address of Google's Programmable Search")
    google_key: Key = Field(
        "", repr=False, description="API key of Google's Programmable Search, for those who are customers already; with `google_cx`"
    )
    google_cx: Key = Field("", description="id of the search engine that `google_key` asks")
    pexels_url: str = Field("https://api.pexels.com/v1/search", description="search address of Pexels")
    pexels_key: Key = Field("", repr=False, description="API key of Pexels, without which it is not searched")
    unsplash_url: str = Field("https://api.unsplash.com/search/photos", description="search address of Unsplash")
    unsplash_key: Key = Field("", repr=False, description="access key of Unsplash, without which it is not searched")
    duckduckgo: bool = Field(False, description="whether DuckDuckGo may be searched; it has no API, and names no licence")
    duckduckgo_url: str = Field("https://duckduckgo.com/", description="address of DuckDuckGo")
    bing_url: str = Field(
        "", description="address of an image search that answers as Bing's v7 did; Microsoft's own was ended in August 2025"
    )
    bing_key: Key = Field("", repr=False, description="key that is sent to `bing_url`, if it asks for one")
    fetch_allow: list[str] = Field([], description="private networks that downloads may reach, as a JSON list of CIDRs; meant for tests")
    lease_seconds: float = Field(60, gt=0, description="a worker silent for this long has lost its unit of work")
    heartbeat_seconds: float = Field(1, gt=0, description="how often a worker renews its lease, reports progress and looks for a cancel")
    max_attempts: int = Field(3, ge=1, description="how often a unit of work is tried when workers die on it")
    honour_noai: bool = Field(True, description="leave out images that ask not to be used for AI (X-Robots-Tag: noai or noimageai)")
    child_memory_bytes: int = Field(4 * 2**30, ge=2**28, description="memory limit of a process that decodes images for a dataset, bytes")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @property
    def roots(self) -> str:
        """What `import_roots` names, for messages."""
        return ", ".join(self.import_roots or ()) or "none is"

    @property
    def loopback(self) -> bool:
        """Whether the web listens on this machine alone."""
        return self.host in {"127.0.0.1", "localhost", "::1"}


def load(**overrides: object) -> Settings:
    """Read the environment; `overrides` win. Raises DarkroomError with a sentence a setting."""
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = "; ".join(f"DARKROOM_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise DarkroomError(f"A setting does not fit: {wrong}.") from None
