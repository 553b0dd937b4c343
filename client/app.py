"""The courier: carries bodies between Flower's messages and the site's agent.

It holds no key, no record and no torch, and it does not look into what it carries. Flower
may start it anew for every message; the agent stays.
"""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.service import AgentChannel, SocketChannel
from shared.errors import ConfigError
from shared.wire import body_of, to_reply


def client_app(connect: Callable[[Context], AgentChannel]) -> ClientApp:
    """Return a ClientApp that hands every request to an agent and brings back its answer.

    Args:
        connect: Finds the agent of the node that a message is for.
    """
    app = ClientApp()

    @app.query("describe")
    @app.train()
    @app.train("personalize")
    @app.train("secure_keys")
    @app.train("secure_shares")
    @app.train("secure_agree")
    @app.train("secure_unmask")
    @app.evaluate()
    def carry(message: Message, context: Context) -> Message:
        return to_reply(connect(context).handle(body_of(message)), message)

    return app


def connect_by_socket(context: Context) -> AgentChannel:
    """Return the way to the agent whose socket the site's node configuration names.

    Raises:
        ConfigError: If the configuration has no ``agent-socket``.
    """
    path = context.node_config.get("agent-socket")
    if not isinstance(path, str) or not path:
        raise ConfigError(
            "node configuration: agent-socket is missing; expected the path of the socket, as "
            "in flower-supernode --node-config 'agent-socket=\"/run/consilia/agent.sock\"'"
        )
    return SocketChannel(Path(path))


app = client_app(connect_by_socket)
