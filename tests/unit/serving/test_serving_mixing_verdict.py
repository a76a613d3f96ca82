"""What a client can learn of the mixing verdict: it stands in the model's configuration, with its reason."""

from __future__ import annotations

import http.client
import json

from tests.fakes import served_models as models
from tests.fakes.scheduling import traits
from tests.fakes.serving import serving

from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSource, load_session


def test_verdict_and_reason_stand_in_the_models_configuration() -> None:
    pool, session = ModelPool(), load_session(ModelSource(models.perceptron()))
    pool.swap("unmeasured", "1", session)
    pool.swap("mixing", "1", session.measured(traits(1e-5, (1, 2, 4))))

    with serving(pool) as address:
        connection = http.client.HTTPConnection(str(address), timeout=10)
        told = {}
        for name in pool.names():
            connection.request("GET", f"/v2/models/{name}/config")
            parameters = json.loads(connection.getresponse().read())["parameters"]
            told[name] = {key: value["string_value"] for key, value in parameters.items()}
        connection.close()

    assert told["mixing"] == {
        "row_mixing": "allowed",
        "row_mixing_reason": "the test says so",
        "row_mixing_batches": "1 2 4",
    }
    assert told["unmeasured"]["row_mixing"] == "refused"
    assert "not checked" in told["unmeasured"]["row_mixing_reason"]
    assert told["unmeasured"]["row_mixing_batches"] == ""
