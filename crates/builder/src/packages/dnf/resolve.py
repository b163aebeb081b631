"""What dnf would do, told to larder: one object of JSON in, one out. Nothing of this machine's dnf is read.

in:  root, work, release, basearch, platform, own (a folder, or null), install, exclude,
     repositories [{id, keys, baseurl or metalink or mirrorlist}]
out: epoch, order [[verb, [name]]], packages [{name, version, architecture, sha256, size, path, id, uri}],
     repositories [{id, base, keys}]; or error {kind, said}
"""

import json
import os
import sys

import dnf
import dnf.callback
import dnf.repo
import dnf.transaction
import hawkey
import libdnf.error

# What librepo says where an index has no signature at all: over HTTP, and from a folder.
UNSIGNED = ["Status code: 404", "(37)"]


class Failure(Exception):
    def __init__(self, kind, said):
        super().__init__(said)
        self.told = {"kind": kind, "said": " ".join(said.split())}


class TrustsTheKeysOfTheRecipe(dnf.callback.KeyImport):
    def _confirm(self, *_about):
        return True


def prepare(asked):
    conf = dnf.conf.Conf()
    conf.installroot = asked["root"]
    for name in ["cachedir", "persistdir", "logdir"]:
        os.makedirs(asked["work"] + "/" + name, exist_ok=True)
        setattr(conf, name, asked["work"] + "/" + name)
    conf.config_file_path = "/nonexistent"
    conf.reposdir = [asked["own"]] if asked["own"] else []
    conf.pluginpath = []
    conf.plugins = False
    conf.protected_packages = []
    conf.install_weak_deps = False
    conf.clean_requirements_on_remove = False
    conf.best = True
    conf.installonly_limit = 0
    conf.gpgcheck = True
    conf.zchunk = False
    conf.metadata_expire = 0
    conf.substitutions["releasever"] = asked["release"]
    conf.substitutions["arch"] = conf.substitutions["basearch"] = asked["basearch"]
    conf.module_platform_id = asked["platform"]
    return dnf.Base(conf)


def repositories(base, asked):
    for one in asked["repositories"]:
        repo = dnf.repo.Repo(one["id"], base.conf)
        for kind in ["baseurl", "metalink", "mirrorlist"]:
            if one.get(kind):
                setattr(repo, kind, one[kind])
        repo.gpgkey = ["file://" + one["keys"]]
        repo.skip_if_unavailable = False
        base.repos.add(repo)
    for repo in base.repos.iter_enabled():
        repo._set_key_import(TrustsTheKeysOfTheRecipe())
        load(repo)


def load(repo):
    """An index that is signed must be signed by the right key; one that is not is used as it is."""
    repo.repo_gpgcheck = True
    try:
        repo.load()
    except dnf.exceptions.RepoError as error:
        said = str(error)
        if "signature is not available" in said and any(word in said for word in UNSIGNED):
            repo.repo_gpgcheck = False
            repo.load()
        elif "GPG signature verification" in said or "GPG key" in said:
            raise Failure("refused", "%s: %s" % (repo.id, error)) from error
        else:
            raise


def mark(base, asked):
    base.read_comps(arch_filter=True)
    if asked["exclude"]:
        unwanted = base.sack.query().available().filterm(name=asked["exclude"])
        base.sack.add_excludes(unwanted)
    for name in asked["exclude"]:
        if base.sack.query().installed().filterm(name=name):
            base.remove(name)
    for name in asked["install"]:
        try:
            base.install_specs([name], strict=True)
        except dnf.exceptions.MarkingErrors as error:
            known = not name.startswith("@") and not error.no_match_pkg_specs
            raise Failure("invalid" if known else "not-found", str(error)) from error


def answer(base, asked):
    packages, order = [], []
    transaction = base.transaction or []
    gone = [dnf.transaction.PKG_REMOVE, dnf.transaction.PKG_OBSOLETED]
    removed = sorted({item.pkg.name for item in transaction if item.action in gone})
    if removed:
        order.append(["remove", removed])
    for verb in ["install", "upgrade"]:
        beside = lambda item: item.action == dnf.transaction.PKG_INSTALL
        some = [i for i in transaction if i.action in dnf.transaction.FORWARD_ACTIONS]
        some = sorted((i for i in some if beside(i) == (verb == "install")), key=lambda i: str(i.pkg))
        if some:
            order.append([verb, [item.pkg.name for item in some]])
        packages += [locked(base, item.pkg) for item in some]
    repos = [repo._repo.getMaxTimestamp() for repo in base.repos.iter_enabled()]
    return {
        "epoch": max(repos, default=0),
        "order": order,
        "packages": packages,
        "repositories": [place(repo) for repo in base.repos.iter_enabled()],
    }


def place(repo):
    keys = [key[len("file://"):] for key in repo.gpgkey if key.startswith("file://")]
    return {"id": repo.id, "base": repo.remote_location("x")[:-1], "keys": keys}


def locked(base, package):
    kind, digest = package.chksum
    if kind != hawkey.CHKSUM_SHA256:
        raise Failure("invalid", "%s: its repository has no SHA-256 digest of it" % package.name)
    return {
        "name": package.name,
        "version": package.evr,
        "architecture": package.arch,
        "sha256": digest.hex(),
        "size": package.downloadsize,
        "path": package.location,
        "id": package.reponame,
        "uri": package.remote_location(),
    }


def resolve(asked):
    base = prepare(asked)
    try:
        if asked["own"]:
            base.read_all_repos()
            if not any(base.repos.iter_enabled()):
                raise Failure("not-found", "this machine has no rpm repositories in " + asked["own"])
        repositories(base, asked)
        base.fill_sack(load_system_repo=True, load_available_repos=True)
    except (dnf.exceptions.RepoError, libdnf.error.Error) as error:
        raise Failure("unavailable", str(error)) from error
    try:
        mark(base, asked)
        base.resolve(allow_erasing=bool(asked["exclude"]))
    except dnf.exceptions.DepsolveError as error:
        raise Failure("invalid", str(error)) from error
    return answer(base, asked)


def main():
    asked = json.load(open(sys.argv[1]))
    try:
        told = resolve(asked)
    except Failure as failure:
        told = {"error": failure.told}
    json.dump(told, sys.stdout)


main()
