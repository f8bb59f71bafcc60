"""Can the Hugging Face hub be reached? Its libraries ask five times, for half a minute; here it is asked once."""

from huggingface_hub import constants
from huggingface_hub.utils import get_session


def require_hub(name: str, otherwise: str) -> None:
    """The hub answers, whatever it says; or nobody is to ask it, since HF_HUB_OFFLINE is set.

    Args:
        name: what is wanted of it.
        otherwise: what the user can give in its place.

    Raises:
        ValueError: it can't be reached.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # of whatever library the hub's client is made with
        raise ValueError(
            f"can't get {name} from the hub: {constants.ENDPOINT} can't be reached ({error}); give {otherwise}, or set "
            "HF_HUB_OFFLINE=1 if it was fetched before"
        ) from error
