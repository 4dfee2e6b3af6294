"""`ObsClient`: the standard API in front of the engine. Runs in the caller's process.

Checks every argument before anything is started, turns the call into one frozen request, and the engine's last word
into a `GetResult` or an exception. Touches no signal, logging configuration, start method or working directory.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn, Protocol

from obs_engine.arguments import (
    VERIFY_TASK_NUM_DEFAULT,
    Against,
    read_arguments,
    read_bucket_arguments,
    read_verify_arguments,
)
from obs_engine.credentials import CredentialSource
from obs_engine.errors import CredentialsError, InvalidArgumentError, ObsEngineError
from obs_engine.limits import PART_SIZE_DEFAULT_BYTES
from obs_engine.many_files import FileResult, FilesProgressCallback, FileToUpload, upload_many
from obs_engine.models import GetResult
from obs_engine.options import EngineOptions
from obs_engine.results import result_of
from obs_engine.settings import CHUNK_SIZE_DEFAULT_BYTES, read_settings
from obs_engine.transfer.launch import Call, Launcher
from obs_engine.transfer.messages import (
    Answered,
    Ask,
    Asked,
    CredentialsWanted,
    Failed,
    Logged,
    NewCredentials,
    Progress,
    PutFiles,
    SetBandwidth,
    Uploaded,
    Verified,
    VerifyResult,
)
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import Request
from obs_engine.wire.signing import Credentials

_log = logging.getLogger("obs_engine")
_log.addHandler(logging.NullHandler())

class ProgressListener(Protocol):
    """A progress callback that wants to know more than bytes."""

    def on_progress(self, progress: Progress, /) -> object:
        """Called whenever something changed, some 20 times a second at most."""


ProgressCallback = Callable[[int, int, float], object] | ProgressListener


class ObsClient:
    """A connection to one OBS endpoint, and the engine behind it.

    The engine's processes start with the first upload and end with `close`, with the `with` block, or with this
    process. One client may be used from many threads. It cannot be copied or pickled: other processes make their own.
    """

    def __init__(
        self,
        access_key_id: str = "",
        secret_access_key: str = "",
        is_secure: bool = True,
        server: str | None = None,
        signature: str = "obs",
        region: str = "region",
        path_style: bool = False,
        ssl_verify: bool | str = True,
        is_use_gmssl: bool = False,
        port: int | None = None,
        max_retry_count: int = 3,
        timeout: float = 60,
        chunk_size: int = CHUNK_SIZE_DEFAULT_BYTES,
        long_conn_mode: bool = False,
        proxy_host: str | None = None,
        proxy_port: int | None = None,
        client_verify: Any = None,
        proxy_username: str | None = None,
        proxy_password: str | None = None,
        security_token: str | None = None,
        custom_ciphers: str | None = None,
        use_http2: bool = False,
        is_signature_negotiation: bool = True,
        is_cname: bool = False,
        max_redirect_count: int = 10,
        security_providers: Iterable[Any] | None = None,
        security_provider_policy: str | None = None,
        client_mode: str = "obs",
        use_http_conns: bool = False,
        pool_size: int = 10,
        trust_env: bool = False,
        *,
        id_token_credentials_provider: Any = None,
        engine: EngineOptions | None = None,
        _source: CredentialSource | None = None,
    ) -> None:
        """The arguments stand in the official SDK's order, and mean what they mean there unless said here.

        Args:
            access_key_id, secret_access_key: empty for anonymous access, or where a policy says where they are.
            is_secure: https where `server` names no scheme.
            server: `https://obs.region.example.com`, a host alone, or with a port; see `parse_endpoint`.
            signature: 'obs', 'v2' or 'v4'. With `path_style`, an IP address or `is_cname`, 'obs' becomes 'v2': the
                service knows its own signature on virtual hosts only. 'v2' and 'v4' are never overridden.
            region: for 'v4'.
            path_style: `host/bucket/key` instead of `bucket.host/key`; always so where the host is an IP address.
            ssl_verify: True (the default; the official SDK's is False) checks the certificate and the host name; a
                path names a file of trusted authorities; False checks nothing.
            is_use_gmssl: refused; this engine has no GM/TLS.
            port: where `server` names none.
            max_retry_count: repetitions after a first failure, 0-100.
            timeout: seconds without a byte until a transfer counts as stalled; and for connecting. Above 0.
            chunk_size: bytes given to a connection at once; the engine chooses them itself where this is the SDK's
                default.
            long_conn_mode, use_http_conns, pool_size: taken and not needed: connections are kept, `taskNum` of them.
            proxy_host, proxy_port, proxy_username, proxy_password: all connections go through its CONNECT tunnel.
            client_verify: a `ClientVerify` with certificate and key, for services that want to know the client.
            security_token: of temporary credentials.
            custom_ciphers: OpenSSL's list, for TLS up to 1.2.
            use_http2: offer HTTP/2 on TLS; a connection for each part all the same.
            is_signature_negotiation: ask each bucket whether it understands 'obs', and speak 'v2' where not.
            is_cname: `server` is the bucket's own domain.
            max_redirect_count: redirects that a request follows, 0-100; never from https to http.
            security_providers, security_provider_policy: see `CredentialSource`. Keys are read anew while an upload
                runs, and at once when the service refuses those at hand.
            client_mode: 'workflow' takes `signature` as it is.
            trust_env: use the proxy that the environment names now.
            id_token_credentials_provider: see `obs_engine.credentials.provider_of`.
            engine: tuning of this engine.

        Raises:
            InvalidArgumentError: which argument, what was expected.
        """
        self._settings = read_settings(
            is_secure=is_secure, server=server, signature=signature, region=region, path_style=path_style,
            ssl_verify=ssl_verify, is_use_gmssl=is_use_gmssl, port=port, max_retry_count=max_retry_count,
            timeout=timeout, chunk_size=chunk_size, proxy_host=proxy_host, proxy_port=proxy_port,
            client_verify=client_verify, proxy_username=proxy_username, proxy_password=proxy_password,
            custom_ciphers=custom_ciphers, use_http2=use_http2, is_signature_negotiation=is_signature_negotiation,
            is_cname=is_cname, max_redirect_count=max_redirect_count, client_mode=client_mode, trust_env=trust_env,
            engine=engine,
        )  # fmt: skip
        self._source = _source or CredentialSource(
            access_key_id, secret_access_key, security_token, security_providers, security_provider_policy,
            id_token_credentials_provider, proxy=self._settings.proxy,
        )  # fmt: skip
        self._log_file: Any = None
        self._launcher = Launcher()

    def uploadFile(
        self,
        bucketName: str,
        objectKey: str,
        uploadFile: str | os.PathLike[str],
        partSize: int = PART_SIZE_DEFAULT_BYTES,
        taskNum: int = 1,
        enableCheckpoint: bool = False,
        checkpointFile: str | os.PathLike[str] | None = None,
        checkSum: bool = False,
        metadata: Mapping[str, object] | None = None,
        progressCallback: ProgressCallback | None = None,
        headers: Any = None,
        extensionHeaders: Any = None,
        encoding_type: str | None = None,
        isAttachCrc64: bool = False,
    ) -> GetResult:
        """Uploads a file in parts, and continues where an earlier call was interrupted.

        Args:
            bucketName: 3-63 characters, see the document's Table 1.
            objectKey: 1-1024 characters.
            uploadFile: path of a regular file of any size, empty included.
            partSize: bytes; clamped to 100 KB - 5 GB, and grown where more than 10,000 parts would be needed.
            taskNum: parts in flight at most, 1-10000.
            enableCheckpoint: keep a journal, and continue from it.
            checkpointFile: the journal's path; by default `<uploadFile>.upload_record`. Unused without
                `enableCheckpoint`.
            checkSum: identify the file by its content too (xxh3-128), beyond size and modification time.
            metadata: custom metadata, 8 KB at most; keys without prefix.
            progressCallback: called in the calling thread, some 20 times a second at most, with (bytes acknowledged or
                on their way, bytes in all, seconds). It never goes back; all bytes are told of success only, as the
                last call. An object with a method `on_progress` gets a `Progress` instead, with parts and what limits
                them.
            headers: an `UploadFileHeader`.
            extensionHeaders: more headers, sent with every request: a dict, or an `ExtensionHeader`.
            encoding_type: 'url' to have the reply's key URL-encoded on the wire.
            isAttachCrc64: send the CRC-64 of each part and of the object; the service refuses what does not match.

        Returns:
            A `GetResult` whose `body` is a `CompleteMultipartUploadResponse`, and whose `report` says what this call
            did. Where only the last request, Complete, was refused, or the very first, which asks the bucket what it
            understands, `status` is 300 or more, as in the SDK.

        Raises:
            InvalidArgumentError, SourceError, CredentialsError: before anything is started on the service.
            ServiceError, TransportError, IntegrityError, JournalError, EngineDiedError: the upload failed. With a
                checkpoint its progress is kept, and the same call continues it.
        """
        return self._upload(
            progressCallback, bucket=bucketName, key=objectKey, upload_file=uploadFile, part_size=partSize,
            task_num=taskNum, is_checkpoint=enableCheckpoint, checkpoint_file=checkpointFile, is_checksum=checkSum,
            metadata=metadata, headers=headers, extensions=extensionHeaders, encoding_type=encoding_type,
            is_crc64=isAttachCrc64,
        )  # fmt: skip

    def uploadFiles(
        self,
        bucketName: str,
        files: Iterable[FileToUpload | tuple[str, str]],
        partSize: float = PART_SIZE_DEFAULT_BYTES,
        taskNum: int = 32,
        checkpointFolder: str | os.PathLike[str] | None = None,
        checkSum: bool = False,
        metadata: Mapping[str, object] | None = None,
        headers: Any = None,
        extensionHeaders: Any = None,
        isAttachCrc64: bool = False,
        progressCallback: FilesProgressCallback | None = None,
    ) -> Iterator[FileResult]:
        """Uploads many files, and yields the result of each as it comes, in any order.

        A file smaller than a part goes as one request, many files at a time; a larger one as `uploadFile` does it, a
        few at a time. A file that fails is a result like the others, and fails nobody else. Leaving the iterator
        cancels what is under way; with `checkpointFolder`, the progress of large files is kept.

        Args:
            bucketName: 3-63 characters.
            files: `FileToUpload`, or pairs of a path and a key. Read in the calling thread as there is room, so it may
                be of any length: a walk over a tree of millions.
            partSize: bytes; from this size on a file goes in parts.
            taskNum: small files and parts of one large file in flight at most, 1-10000. What all of them together may
                have is `EngineOptions.max_connections`.
            checkpointFolder: where the journals of large files are kept while they are under way; None for no journals.
            checkSum: as of `uploadFile`, for large files.
            metadata, headers, extensionHeaders: as of `uploadFile`, the same for all objects. The type of an object's
                content comes from its key, where `headers` name none.
            isAttachCrc64: send the CRC-64 of each file and part.
            progressCallback: called in the calling thread with (path, bytes stored of it, its size) of large files.

        Returns:
            An iterator of `FileResult`.

        Raises:
            InvalidArgumentError, CredentialsError: before anything is started; and while files are read, one that is no
                pair.
            ServiceError, TransportError, EngineDiedError: nothing can be sent at all.
        """
        credentials = self._source.current()
        request = read_bucket_arguments(
            self._settings, credentials, bucket=bucketName, task_num=taskNum, metadata=metadata, headers=headers,
            extensions=extensionHeaders, is_crc64=isAttachCrc64,
        )  # fmt: skip

        def upload_large(file: FileToUpload, record: str | None, callback: Any, on_call: Any) -> GetResult:
            return self._upload(
                callback, on_call, bucket=bucketName, key=file.key, upload_file=file.path, part_size=partSize,
                task_num=taskNum, is_checkpoint=record is not None, checkpoint_file=record, is_checksum=checkSum,
                metadata=metadata, headers=headers, extensions=extensionHeaders, encoding_type=None,
                is_crc64=isAttachCrc64,
            )  # fmt: skip

        return upload_many(
            files, lambda: self._launcher.call(PutFiles(request)), lambda call: self._heard(call, credentials),
            upload_large, part_size_bytes=int(partSize), checkpoint_folder=checkpointFolder, callback=progressCallback,
        )  # fmt: skip

    def verifyFile(
        self,
        bucketName: str,
        objectKey: str,
        uploadFile: str | os.PathLike[str],
        against: Against = "auto",
        partSize: int | None = None,
        versionId: str | None = None,
        taskNum: int = VERIFY_TASK_NUM_DEFAULT,
        headers: Any = None,
        extensionHeaders: Any = None,
        progressCallback: ProgressCallback | None = None,
    ) -> VerifyResult:
        """Is an object that is there already equal to a file? Uploads nothing and changes nothing.

        What each way proves, and what it does not, stands in SEMANTICS.md.

        Args:
            bucketName, objectKey: of the object.
            uploadFile: path of a regular file.
            against: "crc64": the CRC-64 that the service keeps of the object; "etag": its ETag, where that is made of
                MD5s; "content": its bytes, all of which are fetched; "auto": the first of these that the object allows.
            partSize: bytes of the parts that the object was uploaded in, 1 to 5 GB, for its ETag. None asks the
                service, and else tries the sizes that are usual.
            versionId: of the object; None for the newest.
            taskNum: ranges compared or digested at a time, 1-10000.
            headers: an `UploadFileHeader`, of which the `sseHeader` counts: an `SseCHeader` where the object is
                encrypted with a key of yours.
            extensionHeaders: more headers, sent with every request: a dict, or an `ExtensionHeader`.
            progressCallback: called in the calling thread with (bytes compared, bytes in all, seconds); all bytes are
                told of equality only. Where several part sizes are tried, it waits until the next gets as far.

        Returns:
            A `VerifyResult`: also where they differ, which is no error.

        Raises:
            InvalidArgumentError: also where the object cannot be compared in the way that was asked for.
            SourceError, CredentialsError, ServiceError, TransportError, EngineDiedError: they could not be compared.
                A file that changes meanwhile is a SourceChangedError.
        """
        credentials = self._source.current()
        request = read_verify_arguments(
            self._settings, credentials, bucket=bucketName, key=objectKey, upload_file=uploadFile, against=against,
            part_size=partSize, version_id=versionId, task_num=taskNum, headers=headers, extensions=extensionHeaders,
            callback=progressCallback,
        )  # fmt: skip
        done = self._last_word(request, credentials, progressCallback)
        assert isinstance(done, Verified)
        return done.result

    def refresh(self, access_key_id: str, secret_access_key: str, security_token: str | None = None) -> None:
        """Puts other access keys in the place of those at hand; uploads that run go on with them.

        Raises:
            InvalidArgumentError: one is no printable string; the old ones stay.
        """
        self._source.replace(access_key_id, secret_access_key, security_token)

    def set_max_bandwidth(self, bytes_per_s: float | None) -> None:
        """Caps what all uploads of this client send together, those that run included.

        Args:
            bytes_per_s: 1024 at least; None for no cap.

        Raises:
            InvalidArgumentError: it is none of these; the old cap stays.
        """
        engine = replace(self._settings.engine, max_bandwidth_bytes_per_s=bytes_per_s)
        self._settings = replace(self._settings, engine=engine)
        self._launcher.tell(SetBandwidth(bytes_per_s))

    def initLog(self, log_config: Any = None, log_name: str = "OBS_LOGGER") -> None:
        """Writes the engine's log lines to the file that a `LogConf` names, until `close`.

        Without it nothing is written anywhere: a host that has logging of its own finds the lines in the logger
        "obs_engine".

        Args:
            log_config: a `LogConf`; None changes nothing.
            log_name: stands in each line.

        Raises:
            InvalidArgumentError: it is none, or its file cannot be written.
        """
        if log_config is None:
            return
        from obs_engine.log_file import LogFile

        if self._log_file is not None:
            self._log_file.close()
        self._log_file = LogFile(log_config, log_name)
        _log.info("obs-engine at %s, addressing %s", self._settings.target.endpoint, self._settings.target.addressing)

    def close(self) -> None:
        """Ends the engine's processes. A running upload fails; with a checkpoint its progress is kept."""
        self._launcher.close()
        if self._log_file is not None:
            self._log_file.close()

    def __enter__(self) -> ObsClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ObsClient {self._settings.target.endpoint} {self._settings.target.signature}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("ObsClient: expected to stay in its process, found it copied or pickled; make another there")

    def _ask(self, request: Request) -> Reply:
        """Sends one small request that belongs to no upload, with this client's keys and patience.

        For the command, which says in plain words what it asks (`cli/inquiries.py`); the names that the official SDK
        has for such requests are left to the official SDK.

        Returns:
            The last reply, whatever its status.

        Raises:
            ObsEngineError: none came.
        """
        credentials = self._source.current()
        upload = read_bucket_arguments(self._settings, credentials, bucket=request.bucket)
        done = self._last_word(Ask(upload, request), credentials, None)
        assert isinstance(done, Answered)
        return done.reply

    def _upload(
        self, callback: ProgressCallback | None, on_call: Callable[[Call], object] | None = None, **arguments: Any
    ) -> GetResult:
        """One upload of a file, with the arguments of `read_arguments`."""
        credentials = self._source.current()
        request = read_arguments(self._settings, credentials, callback=callback, **arguments)
        done = self._last_word(request, credentials, callback, on_call)
        assert isinstance(done, Uploaded)
        return result_of(done.reply, done.report, request.target, request.bucket, request.key)

    def _last_word(
        self, request: Asked, credentials: Credentials, callback: ProgressCallback | None,
        on_call: Callable[[Call], object] | None = None,
    ) -> Any:  # fmt: skip
        """Runs a call to its end, and passes on what is said meanwhile.

        Args:
            on_call: gets the call as it begins, for another thread to cancel it.

        Raises:
            ObsEngineError: it failed.
        """
        progress = _ProgressTeller(callback)
        with self._launcher.call(request) as call:
            if on_call is not None:
                on_call(call)
            for message in self._heard(call, credentials):
                if isinstance(message, Progress):
                    progress.tell(message)
                else:
                    return message
        _unreachable()

    def _heard(self, call: Call, credentials: Credentials) -> Iterator[Any]:
        """What a call says, but for what is answered here: log lines, questions for keys, failures.

        Raises:
            ObsEngineError: it failed.
        """
        for message in call.messages():
            if isinstance(message, Logged):
                _log.log(message.level, "%s", message.text)
            elif isinstance(message, CredentialsWanted):
                credentials = self._say_credentials(call, credentials, is_refused=message.is_refused)
            elif isinstance(message, Failed):
                raise message.error.error()
            else:
                yield message

    def _say_credentials(self, call: Call, known: Credentials, *, is_refused: bool) -> Credentials:
        """Answers the coordinator's question with the keys as they are now, or, where none can be had, with the old."""
        try:
            found = self._source.current(known if is_refused else None)
            # Why not anonymous: an upload that began with keys could not even be aborted.
            known = known if found.is_anonymous else found
        except (CredentialsError, InvalidArgumentError) as error:
            _log.warning("the upload goes on with the access keys that it has: %s", error)
        call.say(NewCredentials(known, not self._source.is_static))
        return known


class _ProgressTeller:
    """Calls the caller's callback; one that raises is logged once and never fails an upload."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._started_s = time.monotonic()
        self._is_broken = False
        self._shown: int | None = None

    def tell(self, progress: Progress) -> None:
        listener = getattr(self._callback, "on_progress", None)
        try:
            if listener is not None:
                listener(progress)
            elif callable(self._callback) and progress.shown_bytes != self._shown:
                self._shown = progress.shown_bytes
                seconds = max(0.001, time.monotonic() - self._started_s)
                self._callback(progress.shown_bytes, progress.total_bytes, seconds)
        except Exception:
            if not self._is_broken:
                _log.exception("progressCallback raised; the upload goes on")
            self._is_broken = True


def _unreachable() -> NoReturn:
    raise ObsEngineError("the coordinator's messages ended without a result; please report it")
