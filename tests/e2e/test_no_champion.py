"""The service before there is a model, and when the first one comes."""

from e2e.conftest import Make
from e2e.support import refuse, succeed, wait_for_version


def test_service_waits_for_the_first_model_and_takes_it_up(make: Make) -> None:
    project = make()
    with project.serve() as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        for answer in (client.post("/predict", json={"rows": [{}]}), client.get("/model")):
            assert answer.status_code == 503
            assert answer.json()["error"].startswith("There is no model yet")
            assert answer.json()["error"].count(".") == 1
        project.run()
        wait_for_version(client, "1")
        assert client.get("/readyz").status_code == 200


def test_commands_in_a_fresh_project_say_what_to_do(make: Make) -> None:
    project = make()
    assert "`ml run`" in succeed(project.ml("status")).stdout
    assert "`ml run`" in refuse(project.ml("predict", "rows.csv", "out.csv"))
    assert "none yet" in succeed(project.ml("doctor")).stdout
    assert project.champion is None
