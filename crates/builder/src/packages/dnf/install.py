"""Puts packages into an image in one transaction, or only writes down that they are there.

in (the first argument, a file of JSON): root, database, note, packages [[verb, file]], remove [name]

Told on standard error: what is missing, what scripts say, what went wrong. The exit code is 0 only when all
of it was done and every script ended well.
"""

import json
import os
import sys

import rpm

NOTHING_BUT_THE_DATABASE = rpm.RPMTRANS_FLAG_JUSTDB | rpm.RPMTRANS_FLAG_NOSCRIPTS | rpm.RPMTRANS_FLAG_NOTRIGGERS


def open_database(asked):
    for name, value in [
        ("_dbpath", asked["database"]),
        ("_db_backend", "sqlite"),
        ("__plugindir", "/nonexistent"),
        # They are mounted while packages are installed, and belong to nobody's package.
        ("_netsharedpath", "/dev:/proc:/run:/sys:/tmp"),
        ("_install_langs", "all"),
    ]:
        rpm.addMacro(name, value)
    transaction = rpm.TransactionSet(asked["root"])
    # Signatures were verified by the keys of the recipe, which the image need not have.
    transaction.setVSFlags(rpm.RPMVSF_MASK_NOSIGNATURES)
    return transaction


class Told:
    def __init__(self):
        self.open = {}
        self.failed = []

    def __call__(self, what, amount, total, key, _data):
        if what == rpm.RPMCALLBACK_INST_OPEN_FILE:
            self.open[key] = os.open(key, os.O_RDONLY)
            return self.open[key]
        if what == rpm.RPMCALLBACK_INST_CLOSE_FILE:
            os.close(self.open.pop(key))
        elif what in (rpm.RPMCALLBACK_SCRIPT_ERROR, rpm.RPMCALLBACK_UNPACK_ERROR, rpm.RPMCALLBACK_CPIO_ERROR):
            self.failed.append(os.path.basename(str(key)))
        return None


def remove_leftovers(folder):
    """What readers of the database leave beside it, and what is the same in no two builds."""
    for name in [".rpm.lock", "rpmdb.sqlite-shm", "rpmdb.sqlite-wal"]:
        path = folder + "/" + name
        if os.path.exists(path) and os.path.getsize(path) and name.endswith("-wal"):
            sys.exit("the database of packages was not closed")
        if os.path.exists(path):
            os.unlink(path)


def main():
    asked = json.load(open(sys.argv[1]))
    transaction = open_database(asked)
    transaction.initDB()
    if asked["note"]:
        transaction.setFlags(NOTHING_BUT_THE_DATABASE)
        transaction.setProbFilter(~0)
    else:
        transaction.setProbFilter(rpm.RPMPROB_FILTER_OLDPACKAGE)
    for verb, file in asked["packages"]:
        with open(file, "rb") as package:
            header = transaction.hdrFromFdno(package.fileno())
        transaction.addInstall(header, file, "u" if verb == "upgrade" else "i")
    for name in asked["remove"]:
        for header in transaction.dbMatch("name", name):
            transaction.addErase(header)
    transaction.check()
    problems = [] if asked["note"] else [str(problem) for problem in transaction.problems()]
    transaction.order()
    told = Told()
    if not problems:
        problems = [str(problem) for problem, _ in transaction.run(told, "") or []]
    for problem in problems:
        print(problem, file=sys.stderr)
    for name in told.failed:
        print("a script of " + name + " failed", file=sys.stderr)
    transaction.closeDB()
    remove_leftovers(asked["root"] + asked["database"])
    sys.exit(1 if problems or told.failed else 0)


main()
