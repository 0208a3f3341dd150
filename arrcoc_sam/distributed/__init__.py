"""Scoring, hierarchy caching and the atlas's images on Ray: the local engines' work on a pool of actors.

An actor holds the models. It takes the number of a part, a shard or an image, does with the very code that the local
engine runs what there is to do, and writes the outcome under a name of its own, which is then renamed. So an actor that
dies, or work that Ray tries twice, changes nothing in the outcome, and a run can be stopped, resumed, and carried on by
the other engine. All machines must see the data, the images and the outcome's folder under the same paths.
"""

from arrcoc_sam.distributed.atlas import AtlasActor, RayAtlasEngine
from arrcoc_sam.distributed.caching import CacheActor, RayCacheEngine
from arrcoc_sam.distributed.pool import ActorPool, OnRay
from arrcoc_sam.distributed.scoring import RayEngine, ScoringActor

__all__ = [
    "ActorPool",
    "AtlasActor",
    "CacheActor",
    "OnRay",
    "RayAtlasEngine",
    "RayCacheEngine",
    "RayEngine",
    "ScoringActor",
]
