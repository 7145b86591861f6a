"""Xids and SXids as the drivers write them, read into events, and evaluated by what is known of their codes."""

import random

import pytest
from health_cases.kernel_log import FAULT, NVLINK, NVLINK_PADDED, RLW, UNIT, XID, logged
from health_machines.linux import server
from health_trees import changed, report_of, snapshot_of

from aifx.core.facts import Unknown
from aifx.health import xids
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.kernel_log import Line
from aifx.health.report import SEVERITIES
from aifx.health.rules import load_rules
from aifx.health.snapshot import Snapshot

LOST = XID + "79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
NEEDED = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
DONE = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
RULES = load_rules()


def of(*texts):
    return xids.facts(Line(60.0, text) for text in texts)


@pytest.mark.parametrize(
    ("where", "device"),
    [
        ("PCI:0000:3b:00", "0000:3b:00.0"),
        ("PCI:0000:3B:00.0", "0000:3b:00.0"),
        ("0000:03:00", "0000:03:00.0"),
        ("PCI:00000000:65:00", "0000:65:00.0"),
        ("PCI:0009:01:00", "0009:01:00.0"),
        ("PCI:0000:01:00 GPU-I:05", "0000:01:00.0"),
        ("garbage", "garbage"),
    ],
)
def test_the_device_is_its_pci_address(where, device):
    (found,) = of(f"NVRM: Xid ({where}): 94, pid=7, name=python3, Contained: SM (0x1)")["xids"]
    assert (found["code"], found["device"]) == (94, device)


@pytest.mark.parametrize(
    ("line", "fatal", "sub_code", "action"),
    [
        (NVLINK.format("Fatal", "0x026001c6"), True, "NETIR_LINK_EVT 38", "IGNORE, then INVESTIGATE_SW/USER"),
        (NVLINK.format("Fatal", "0x025001c6"), True, "NETIR_LINK_EVT 37", "RESET_GPU, then INVESTIGATE_PEER_DEVICE"),
        (NVLINK.format("Nonfatal", "0x004505c6"), False, "NETIR_LINK_EVT 4", "RESET_GPU, then INVESTIGATE_LINK_SI"),
        # As the driver prints it, in columns (NVSentinel tests with such lines).
        (NVLINK_PADDED, True, "NETIR_LINK_EVT 37", "RESET_GPU, then INVESTIGATE_PEER_DEVICE"),
        ("145, RLW_REMAP       Nonfatal XC1  i0 Link 02 (0x00400082  0x00000040)", False, "RLW_REMAP 0x40",
         "RESET_GPU, then CONTACT_SUPPORT"),
        (RLW, False, "RLW_RXPIPE 0x8", "IGNORE, then CONTACT_SUPPORT"),
        ("144, SAW_MVB Nonfatal XC0 i0 Link 0 (0x00000001 0x00000008 0x0 0x0 0x0 0x0)", False, "SAW_MVB 0x8",
         "IGNORE, then CONTACT_SUPPORT"),
        ("145, pid=7, name=python3, RLW_REMAP Fatal XC1 i0 Link 02 (0x00400082 0x00000040)", True, "RLW_REMAP 0x40",
         "RESET_GPU, then CONTACT_SUPPORT"),
        ("146, TLW_RX/TLW_RX_PIPE0 Fatal XC0 i0 Link 02 (0x00400082 0x00000004)", True, "TLW_RX 0x4",
         "RESET_GPU, then CONTACT_SUPPORT"),
        ("146, TLW_TX_PIPE1    Nonfatal XC0 i0 Link 03 (0x00000010 0x00000004)", False, "TLW_TX 0x4",
         "RESET_GPU, then CONTACT_SUPPORT"),
        ("149, NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000 0x0)", True, "NETIR 0x0",
         "RESET_GPU, then SYMPATHETIC_REPORT_SOLO"),
    ],
)  # fmt: skip
def test_nvlink5_says_whether_it_is_fatal_and_which_unit_it_was(line, fatal, sub_code, action):
    (found,) = of(XID + line)["xids"]
    assert (found["fatal"], found["sub_code"], found["nvidia_action"]) == (fatal, sub_code, action)


def test_an_nvlink5_line_that_does_not_say_is_unknown(tmp_path):
    (found,) = of(XID + "147, something else")["xids"]
    assert isinstance(found["fatal"], Unknown)
    report = report_of(snapshot_of(changed(server(), logged(XID + "147, something else")), tmp_path))
    assert {(f.id, f.severity) for f in report.findings} >= {("xid.nvlink.fatal", "unknown")}


def test_a_fatal_and_a_non_fatal_of_one_code_are_two():
    found = of(XID + RLW, XID + RLW.replace("Nonfatal", "Fatal"))
    assert [x["fatal"] for x in found["xids"]] == [False, True]
    (gpu,) = found["xid_gpus"]
    assert gpu == {"device": "0000:3b:00.0", "fatal_24h": 1, "fatal_lines_24h": 1, "fatal_codes": [145]}


def test_sxids_say_whether_they_are_fatal():
    begin = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): "
    found = of(
        begin + "20034, Fatal, Link 26 LTSSM Fault Up",
        begin + "20034, Severity 1 Engine instance 26 Sub-engine instance 00",
        begin + "20034, Data {0x00000001, 0x00000000}",
        begin + "12028, Non-fatal, Link 32 egress non-posted PRIV error (First)",
        begin + "22003, Link 12 Minion halt",
        begin + "99999, Link 12 new",
    )["sxids"]
    assert [(s["code"], s["count"], s["fatal"]) for s in found[:3]] == [
        (20034, 1, True),
        (12028, 1, False),
        (22003, 1, True),
    ]
    assert isinstance(found[3]["fatal"], Unknown)


def test_lines_at_once_are_one_event_and_units_are_distinguished():
    def fault(age, text):
        return Line(age, XID + text)

    hour = 3600.0
    one_unit = [fault(hour * n + 0.1 * k, UNIT.format(2)) for n in (3, 2, 1) for k in (1, 0)]
    (found,) = xids.facts(one_unit)["xids"]
    assert (found["count_24h"], found["same_unit_24h"]) == (3, 3)
    # A program's fault runs over many units, the same ones again at its next start.
    program = [fault(hour * n + 0.1 * k, UNIT.format(k)) for n in (2, 1) for k in (3, 2, 1)]
    (found,) = xids.facts(program)["xids"]
    assert (found["count_24h"], found["same_unit_24h"]) == (2, 0)
    old = [fault(hour * 50, FAULT.format(4)), fault(hour, FAULT.format(4))]
    (found,) = xids.facts(old)["xids"]
    assert (found["count"], found["count_24h"], found["same_unit_24h"]) == (2, 1, 1)


STORMS = {"xids": XID + RLW, "xids of one unit": XID + FAULT.format(4), "fatal xids": XID + NVLINK_PADDED,
          "sxids": "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20001, Non-fatal, Link 32 TX replay error"}  # fmt: skip


def storm(text, seconds):
    """A line a second, the last one an hour ago."""
    return xids.facts(Line(3600.0 + seconds - number, text) for number in range(1, seconds + 1))


def test_a_storm_is_many_bursts_and_all_of_its_lines():
    (found,) = storm(STORMS["xids"], 7200)["xids"]
    assert (found["code"], found["count"], found["count_24h"], found["lines_24h"]) == (145, 120, 120, 7200)
    (found,) = storm(STORMS["xids of one unit"], 600)["xids"]
    assert (found["code"], found["same_unit_24h"]) == (31, 10)
    (found,) = storm(STORMS["fatal xids"], 600)["xid_gpus"]
    assert (found["fatal_24h"], found["fatal_lines_24h"]) == (10, 600)
    (found,) = storm(STORMS["sxids"], 600)["sxids"]
    assert (found["count_24h"], found["lines_24h"]) == (10, 600)


def worst(lines):
    """The place in SEVERITIES of the worst finding of lines, given as age and text."""
    rules = [rule for rule in RULES.values() if rule.family in ("xid", "sxid")]
    found = xids.facts(Line(age, text) for age, text in lines)
    return min(SEVERITIES.index(one.severity) for one in evaluate_rules(rules, Snapshot("n1", 0.0, found)).findings)


@pytest.mark.parametrize("text", STORMS.values(), ids=STORMS)
def test_more_lines_make_no_verdict_milder(text):
    draw = random.Random(text)
    for apart_s in (1, 8, 14, 16, 59, 61):
        storm = [(7200.0 - apart_s * number, text) for number in range(12)]
        between = [(age - apart_s / 2, text) for age, _ in storm]
        anywhere = [(draw.uniform(0, xids.DAY_S), text) for _ in range(30)]
        lines, found = [], []
        twice = [*storm, *between]  # as of two logs
        for more in (storm[:1], storm[1:9], storm[9:], between, twice, anywhere):
            lines += more
            draw.shuffle(lines)
            found.append(worst(lines))
        assert found == sorted(found, reverse=True), apart_s


@pytest.mark.parametrize("text", STORMS.values(), ids=STORMS)
def test_a_longer_storm_has_no_milder_verdict(text):
    found = [worst([(7200.0 - 6 * number, text) for number in range(size)]) for size in (1, 5, 11, 100, 600, 1200)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < SEVERITIES.index("info")


def test_a_fault_on_every_gpu_is_the_programs(tmp_path):
    lines = [UNIT.format(2)] * 2
    both = [f"NVRM: Xid (PCI:0000:{bus}:00): {line}" for line in lines for bus in ("3b", "5d")]
    report = report_of(snapshot_of(changed(server(), logged(*both, ago=7200, apart=600)), tmp_path))
    assert {f.id for f in report.findings} == {"xid.program.repeated"}


def test_an_old_xid_does_not_condemn_but_one_that_only_a_reboot_fixes_does(tmp_path):
    day = 86_400.0
    lines = ("95, pid=4, name=python3, Uncontained", "13, Graphics", "145, " + RLW[5:], "731, new")
    old = changed(server(), logged(*(XID + line for line in lines), ago=day + 60))
    assert report_of(snapshot_of(old, tmp_path)).findings == ()
    old = changed(old, logged(LOST, ago=5 * day))
    assert [f.id for f in report_of(snapshot_of(old, tmp_path)).findings] == ["xid.gpu.lost"]


def test_what_a_reset_has_fixed_counts_no_more(tmp_path):
    other = "NVRM: Xid (PCI:0000:5d:00): 95, pid=4, name=python3, Uncontained"
    begin = [XID + "95, pid=4, name=python3, Uncontained", other, XID + "154, " + NEEDED]
    fixed = changed(server(), logged(*begin, XID + "154, " + DONE))
    assert {(f.id, f.device) for f in report_of(snapshot_of(fixed, tmp_path)).findings} == {
        ("xid.gpu.reset", "0000:5d:00.0")
    }
    loaded = "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build"
    assert report_of(snapshot_of(changed(server(), logged(*begin, loaded)), tmp_path)).findings == ()
    switch = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 22003, Fatal, Link 12 Minion halt"
    assert report_of(snapshot_of(changed(server(), logged(switch, loaded)), tmp_path)).findings == ()
    again = changed(server(), logged(*begin, loaded, other))
    assert [f.device for f in report_of(snapshot_of(again, tmp_path)).findings] == ["0000:5d:00.0"]


def test_the_last_word_on_recovery_counts():
    (found,) = of(XID + "154, " + NEEDED, XID + "154, " + DONE)["xids"]
    assert found["sub_code"] == "None"


def test_each_xid_of_the_catalogue_has_a_class_a_source_and_a_rule():
    document = xids.catalogue()
    classes = RULES["xid.driver.unlisted"].known
    for entries in (document["xid"].values(), document["sxid"].values()):
        for entry in entries:
            assert entry["name"]
            assert entry["source"] in document["sources"]
    assert {entry["class"] for entry in document["xid"].values()} <= set(classes)
    codes = [code for rule in RULES.values() if rule.family == "xid" for code in _codes(rule)]
    assert set(document["xid"]) == set(codes)


def _codes(rule):
    """The codes that a rule is about."""
    if rule.signal == "code":
        return rule.fails_if.get("any_of") or [rule.fails_if["equals"]]
    asked = rule.applies_if.get("code", {})
    return asked.get("any_of") or [asked["equals"]] if asked else []


@pytest.mark.parametrize(
    ("rule", "group", "own"),
    [
        ("xid.gpu.reset", "reset", {109, 119, 120}),
        ("xid.gpu.support", "contact_support", set()),
        ("xid.program.fault", "application", {94}),
        ("xid.driver.note", "info", {63, 92, 154}),
    ],
)
def test_rules_and_catalogue_agree(rule, group, own):
    codes = {code for code, entry in xids.catalogue()["xid"].items() if entry["class"] == group}
    assert set(_codes(RULES[rule])) == codes - own
    fatal = {code for code, entry in xids.catalogue()["sxid"].items() if entry["class"] == "always_fatal"}
    assert set(_codes(RULES["sxid.switch.always_fatal"])) == fatal
