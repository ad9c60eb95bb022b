"""What a step of training on one pair does to the answers to other prompts, to first order (Eq. 2).

Δ log π(· | x′) = −η A(x′) K(x′,x) G(x,y), with K = J(x′) J(x)ᵀ, over the whole vocabulary and
without a matrix of V × V: J(x)ᵀ G is the gradient of the loss on (x, y), one backward pass
(`updates`), and J(x′) times it one pass in forward mode (`observations`). `prediction` combines
them; read it first.
"""

from .examples import Example as Example
from .examples import answered as answered
from .observations import LogProbabilities as LogProbabilities
from .observations import Observation as Observation
from .observations import Refusals as Refusals
from .optimizer_steps import StepPrediction as StepPrediction
from .optimizer_steps import apply_step as apply_step
from .optimizer_steps import count_steps as count_steps
from .optimizer_steps import predict_step as predict_step
from .optimizer_steps import read_step as read_step
from .optimizer_steps import read_steps as read_steps
from .optimizer_steps import record_step as record_step
from .prediction import influence as influence
from .result import Influence as Influence
from .updates import LOSSES as LOSSES
from .updates import Direction as Direction
from .updates import Update as Update
from .updates import update as update
