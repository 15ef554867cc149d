# SPDX-License-Identifier: Apache-2.0
"""``ExtensionManager``: the extensions of one application, by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from ..errors import ManifestError
from .config import ExtensionConfig
from .extension import Extension, HostExtension, IsolatedExtension


class ExtensionManager:
    """Loads, reloads and unloads extensions. ``with`` or ``async with`` unloads them all at the end.

    Args:
        defaults: fields of ``ExtensionConfig`` for packs that are loaded by their manifest, such as ``sandbox`` or
            ``host``; what the manifest says goes before them.
        overrides: fields that go before what a manifest says.
    """

    def __init__(
        self, *, defaults: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
    ) -> None:
        self._defaults = dict(defaults or {})
        self._overrides = dict(overrides or {})
        self._extensions: dict[str, Extension] = {}

    async def load_extension(self, config: ExtensionConfig | str | os.PathLike[str]) -> Any:
        """Load an extension: its environment is built if need be, its process started, its module imported.

        Args:
            config: what to load; or a pack's folder, whose ``manifest.yaml`` says it.

        Returns:
            the extension, whose attributes are its public methods.

        Raises:
            ManifestError: the config is wrong, or one of this name is loaded.
            EnvironmentError: its environment cannot be had.
            WorkerStartError: its code raised; the message ends with its traceback. In the host, the exception itself.
            SandboxUnavailable: a sandbox was asked for, and this machine has none.
        """
        if isinstance(config, ExtensionConfig):
            given = config

            def read() -> ExtensionConfig:
                return given
        else:
            folder = os.path.abspath(config)

            def read() -> ExtensionConfig:
                return self._config_of(folder)

        extension: Extension = (IsolatedExtension if read().isolated else HostExtension)(read)
        if extension.name in self._extensions:
            place = self._extensions[extension.name].config.path()
            raise ManifestError(
                f"extension {extension.name!r} is loaded already, from {place}; unload it first, or reload it, or give "
                "one of them another name"
            )
        self._extensions[extension.name] = extension
        try:
            await extension.load()
        except BaseException:
            self._extensions.pop(extension.name, None)  # gone, if the manager was closed meanwhile
            await asyncio.to_thread(extension.close)
            raise
        return extension

    def _config_of(self, folder: str) -> ExtensionConfig:
        from .config import load_manifest

        said = load_manifest(folder)
        defaults = {key: value for key, value in self._defaults.items() if key not in said}
        return ExtensionConfig.from_manifest(folder, **{**defaults, **self._overrides})

    async def load_all(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Load every pack of a folder that has a manifest, all at the same time.

        Returns:
            by name the extension; by the folder's name the exception, of those that could not be loaded.
        """
        from .config import MANIFEST_NAMES

        packs = sorted(
            entry.path for entry in os.scandir(folder)
            if entry.is_dir() and any(os.path.isfile(os.path.join(entry.path, name)) for name in MANIFEST_NAMES)
        )  # fmt: skip
        loaded = await asyncio.gather(*map(self.load_extension, packs), return_exceptions=True)
        named = {one.name: one for one in loaded if not isinstance(one, BaseException)}
        for path, one in zip(packs, loaded, strict=True):
            if isinstance(one, BaseException):
                name = os.path.basename(path)
                named[path if name in named else name] = one
        return named

    async def reload_extension(self, name: str) -> None:
        """Load the present files of an extension, and its manifest. No call fails meanwhile.

        Raises:
            LookupError: there is none of this name.
            AtollError: they cannot be loaded; then what was loaded before goes on.
        """
        await self.get_extension(name).reload()

    async def unload_extension(self, name: str) -> None:
        """End an extension and forget it.

        Raises:
            LookupError: there is none of this name.
        """
        extension = self.get_extension(name)
        del self._extensions[name]
        await asyncio.to_thread(extension.close)

    def get_extension(self, name: str) -> Any:
        """A loaded extension.

        Raises:
            LookupError: there is none of this name.
        """
        try:
            return self._extensions[name]
        except KeyError:
            known = ", ".join(sorted(self._extensions)) or "none"
            raise LookupError(f"no extension {name!r} is loaded; loaded are: {known}") from None

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._extensions.values()))

    def __len__(self) -> int:
        return len(self._extensions)

    def __contains__(self, name: object) -> bool:
        return name in self._extensions

    def close(self) -> None:
        """Unload all of them. Idempotent."""
        while self._extensions:
            self._extensions.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
