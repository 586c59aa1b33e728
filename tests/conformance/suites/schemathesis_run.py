"""schemathesis against what the host says of itself in `/openapi.json`: every operation is a case."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

import harness
import raw

SUITE = "schemathesis"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"

if __name__ == "__main__":
    if raw.ask("GET", "/openapi.json").status != 200:
        harness.tell(SUITE, "the host's own description", None, "the host has no /openapi.json")
        sys.exit()
    report = os.path.join(tempfile.mkdtemp(), "report.xml")
    command = [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run", harness.URL + "/openapi.json", "--url", harness.URL]
    command += ["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--generation-deterministic"]
    command += ["--suppress-health-check", "all", "--request-timeout", "30", "--include-path-regex", "^/(v1|api|tokenize|detokenize)"]
    subprocess.run([*command, "--report", "junit", "--report-junit-path", report], stdout=sys.stderr, check=False)
    for found in xml.etree.ElementTree.parse(report).iter("testcase"):
        wrong = found.find("failure") if found.find("failure") is not None else found.find("error")
        harness.tell(SUITE, found.get("name"), wrong is None, "" if wrong is None else wrong.get("message") or wrong.text or "")
