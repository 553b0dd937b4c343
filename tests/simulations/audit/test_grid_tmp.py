import time, pytest
from simulations.audit.attacks import infer
from tests.simulations.audit.conftest import *
@pytest.mark.parametrize("n,tables", [
 (160, dict(train={"learning_rate":0.02})),
 (160, dict(train={"learning_rate":0.01,"steps":80})),
 (100, dict(train={"learning_rate":0.02},lora={"rank":16,"alpha":32})),
 (160, dict(train={"learning_rate":0.01},data={"sites":["a"]})),
 (100, dict(train={"learning_rate":0.02},data={"sites":["a"]})),
])
def test_it(stage_of, make_job, planted_of, quiet, n, tables):
    t=time.time(); job=make_job(**tables); stage=stage_of(job)
    found,_=infer(stage, planted_of(n, stage.encoder), "as the job says", job, quiet)
    print("GRID",n,tables,{f.score:(round(f.auc,3),round(f.low,3),f.hits) for f in found},round(time.time()-t,1))
