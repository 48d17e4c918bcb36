"""Asks people which of two models' pictures they prefer, on a web page with a link for each.

    python -m diffusionrl_jax.study serve --a=base --b=runs/emoji@best --prompts=emoji:pairs

The pictures are drawn at the first start. The same command goes on with them, with the same links
and with all votes.
"""

import signal

from absl import flags, logging

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.study import votes
from diffusionrl_jax.reporting.study.commands import opening
from diffusionrl_jax.reporting.study.server import StudyServer

HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Where to listen; 0.0.0.0 is on all of this machine's addresses."
)
PORT = flags.DEFINE_integer("port", 8000, "The port; 0 is any that is free.")
URL = flags.DEFINE_string(
    "url", None, "How raters reach the server, for the links; http://HOST:PORT."
)


def main(_):
    """Runs the command."""
    with programs.clear_errors():
        opening.check_flags(port=PORT.value)
        folder, study = opening.open_study()
        raters = votes.add_raters(
            folder, study, votes.SERVED, opening.RATERS.value, opening.PER_RATER.value
        )
        try:
            server = StudyServer((HOST.value, PORT.value), folder, study)
        except OSError as error:
            raise UserError(
                f"--host={HOST.value} --port={PORT.value} cannot be listened at "
                f"({error.strerror}): choose others."
            ) from None
        url = (URL.value or f"http://{HOST.value}:{server.server_port}").rstrip("/")
        print("Each rater has a link of their own, which is a secret:")
        for rater in raters:
            print(f"rater {rater.number}: {url}/{rater.token}/", flush=True)
        logging.info("Ctrl-C ends it; the same command goes on. Votes are in %s", folder)
        # What keeps services stops them so, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with server:
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                logging.info("python -m diffusionrl_jax.study report --folder=%s", folder)
