"""The composition root: the one place that wires the service together."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI

from app import __version__
from app.config import Settings
from app.jobs.callback_http import Allowance, GuardedClient
from app.jobs.callbacks import Deliverer
from app.jobs.dispatcher import Dispatcher
from app.jobs.hub import Hub
from app.jobs.inputs import Inputs
from app.jobs.process import Launcher
from app.jobs.registry import Registry, kinds_table
from app.jobs.runner import Runner
from app.jobs.service import Jobs
from app.jobs.slots import Slots
from app.jobs.telemetry import Telemetry
from app.jobs.workspace import Workspace
from app.routers import artifacts, health, jobs, optimizing, problems
from app.routers.body_limit import BodyLimit
from app.routers.deps import KeyRing, Services
from app.schemas.job import CallbackBody
from app.storage import factory
from app.version_tag import git_sha

logger = logging.getLogger(__name__)

DESCRIPTION = """Makes vision models ready for the device they must run on, and proves that they still answer the same.

`POST` a job, follow it at its `Location`, fetch its artifacts. Every error is a problem document with a stable `code`.

"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; nothing is opened before its lifespan begins."""
    settings = settings or Settings()
    registry = Registry(settings.kind_packages)
    app = FastAPI(
        title="Optimizing API",
        version=__version__,
        description=DESCRIPTION + kinds_table(registry),
        lifespan=lambda _: _lifespan(settings, registry),
    )
    app.add_middleware(BodyLimit)
    problems.install(app)
    app.include_router(optimizing.build_router(registry))
    app.include_router(jobs.router)
    app.include_router(artifacts.router)
    app.include_router(health.router)
    _declare_webhooks(app)
    return app


@asynccontextmanager
async def _lifespan(settings: Settings, registry: Registry) -> AsyncIterator[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        records, store = factory.record_store(settings), factory.artifact_store(settings)
        await records.start()
        stack.push_async_callback(records.close)
        await store.start()
        stack.push_async_callback(store.close)
        keys = KeyRing(settings.key_pairs(), settings.local_uid)
        if keys.is_open:
            logger.warning("NO API KEY IS SET: everybody who can reach this service is user %s", settings.local_uid)
        if settings.record_store == "mongo" and settings.signing_secret() is None:
            logger.warning("CALLBACK_SECRET is not set: each machine signs callbacks with a secret of its own")
        launcher = Launcher(settings.job_start_method)
        launcher.warm()

        allowance, telemetry, hub = Allowance(settings.callback_allowed_hosts), Telemetry(), Hub()
        client = GuardedClient(allowance)
        stack.push_async_callback(client.close)
        deliverer = Deliverer(settings, records, telemetry, client)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(deliverer.run)

        here: str = await anyio.to_thread.run_sync(git_sha, Path.cwd())
        sha = settings.git_sha or here
        workspace, inputs = Workspace(settings, store), Inputs(settings, store, records)
        runner = Runner(
            settings=settings,
            registry=registry,
            records=records,
            artifacts=store,
            inputs=inputs,
            workspace=workspace,
            launcher=launcher,
            slots=Slots(settings),
            hub=hub,
            telemetry=telemetry,
            wake_callbacks=deliverer.wake,
        )
        dispatcher = Dispatcher(runner)
        await dispatcher.start()
        stack.push_async_callback(dispatcher.drain)
        use = Jobs(
            settings, registry, records, store, inputs, workspace, dispatcher, deliverer, allowance, hub, telemetry, sha
        )
        gc.freeze()  # what was made until here stays: later collections need not walk it, and answers do not wait
        yield {"services": Services(settings, use, keys)}


def _declare_webhooks(app: FastAPI) -> None:
    """The callbacks, in the OpenAPI document, from the schema that they are made of."""

    def ended(body: CallbackBody) -> None:
        """Sent when a job has ended, signed by Standard Webhooks, again until it is answered with a 2xx."""

    for name in ("job.completed", "job.failed", "job.cancelled"):
        app.webhooks.post(name, operation_id=name.replace(".", "_"))(ended)
