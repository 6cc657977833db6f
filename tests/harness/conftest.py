"""Without the harness nothing here can run; its own warnings are no fault of ours."""

import pytest

pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is not installed")
