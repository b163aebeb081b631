# Makes repositories of tiny rpm packages in the folder $1, signed with a key that nobody else has:
#   repo      tools     a shell, a folder for the database, users; no scriptlets
#             tiny      a file, and a scriptlet that configures it; depends on tools
#             more      depends on tiny and on one of `first` and `second`; makes what it should not
#             first, second   both provide what `more` needs; they conflict
#             extra     tiny recommends it
#             broken    its scriptlet fails
#             curious   its scriptlet looks for what is of the host
#             kernel-core   what a boot partition holds, not that it runs
#   next      tiny 2.0, and the rest of what it needs; this one's index is signed, too
#   mixed     tiny is not signed, more is signed with another key
set -e
umask 022
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
top=$1/work; mkdir -p "$top" && cd "$top"
export HOME=$top GNUPGHOME=$top/gnupg SOURCE_DATE_EPOCH=1762000000
mkdir -m 700 gnupg other files build

key() { # homedir name
    gpg --batch --homedir "$1" --passphrase '' --quick-generate-key "$2 <$2@localhost>" rsa2048 sign never 2>/dev/null
}
mkdir -m 700 -p other
key gnupg test; key other other
gpg --batch --armor --export > ../keys.asc
gpg --batch --homedir other --armor --export > ../other.asc

# What scripts in an image need: a shell with everything in it.
mkdir -p files/usr/bin files/usr/sbin files/etc/skel files/var/lib/misc files/var/log files/etc/ssh files/root
cp -L /usr/bin/busybox files/usr/bin/busybox 2>/dev/null || cp -L /bin/busybox files/usr/bin/busybox
for name in sh cat cp mv rm mkdir ln chmod chown touch echo sleep dd id mknod true false test ls env mount; do
    ln -s busybox "files/usr/bin/$name"
done
mkdir files/usr/lib
for folder in bin sbin lib; do ln -s "usr/$folder" "files/$folder"; done
cat > files/usr/bin/systemctl <<'S'
#!/bin/sh
verb=$1; shift; [ "$1" = -- ] && shift
for name; do
    [ -e "/usr/lib/systemd/system/$name.service" ] || { echo "no unit $name" >&2; exit 1; }
    mkdir -p /etc/systemd/system; echo "$verb" > "/etc/systemd/system/$name.$verb"
done
S
chmod 755 files/usr/bin/systemctl
printf 'root:x:0:0:root:/root:/bin/sh\n' > files/etc/passwd
printf 'root:x:0:\nstaff:x:50:\n' > files/etc/group
printf 'root:*:19000:0:99999:7:::\n' > files/etc/shadow
find files -exec touch -h -d @1700000000 {} +

spec() { # name version: the rest on standard input
    cat > "$1-$2.spec" <<S
Name: $1
Version: $2
Release: 1
Summary: test
License: none
BuildArch: ${3:-noarch}
$(cat)
S
    rpmbuild --quiet --define "_topdir $top/build" --define '_build_id_links none' --define 'debug_package %{nil}' \
        --define '__os_install_post %{nil}' --define '_buildhost localhost' --define 'use_source_date_epoch_as_buildtime 1' \
        --define '_binary_payload w0.gzdio' --define '_build_pkgcheck_set %{nil}' --define '__spec_install_pre %{nil}' \
        --define 'payload '"$top"/files -bb "$1-$2.spec" >&2
}
line() { printf '%%description\ntest\n'; }

spec tools 1.0 x86_64 <<S
Provides: /bin/sh
AutoReqProv: no
$(line)
%install
mkdir -p %{buildroot}; cp -a %{payload}/. %{buildroot}/
%files
%defattr(-,root,root)
$(cd files && find . -mindepth 1 \( -type d -printf '%%dir /%P\n' -o -printf '/%P\n' \))
S
tiny() {
    spec tiny "$1" <<S
Requires: tools
Recommends: extra
$(line)
%install
mkdir -p %{buildroot}/usr/share/tiny; echo $2 > %{buildroot}/usr/share/tiny/version
%post
echo configured >> /var/lib/misc/tiny
%files
/usr/share/tiny
S
}
tiny 1.0 one; tiny 2.0 two
spec more 1.0 <<S
Requires: tiny, choice
$(line)
%install
mkdir -p %{buildroot}/usr/lib/systemd/system %{buildroot}/var/log/more %{buildroot}/usr/share/more
touch %{buildroot}/usr/lib/systemd/system/more.service
dd if=/dev/zero bs=1k count=64 2>/dev/null | tr '\\0' m > %{buildroot}/usr/share/more/data
%post
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
echo key > /etc/ssh/ssh_host_rsa_key
echo said > /var/log/more/log
%files
/usr/lib/systemd/system/more.service
/usr/share/more
%dir /var/log/more
S
for name in first second; do
    other=second; [ $name = first ] || other=first
    spec $name 1.0 <<S
Provides: choice
Conflicts: $other
$(line)
%files
S
done
spec extra 1.0 <<S
$(line)
%files
S
spec broken 1.0 <<S
Requires: tools
$(line)
%post
echo this package is broken >&2; exit 7
%files
S
# Each of these must fail in its script; what succeeds is written down.
spec curious 1.0 <<S
Requires: tools
$(line)
%post
echo looked > /looked
for path in /image /usr/lib/python3 /work /home/* /etc/hostname /run/larder/install.py; do
    [ ! -e \$path ] || echo "\$path" >> /escaped
done
mount -t tmpfs none /var 2>/dev/null && echo mount >> /escaped
mknod /disk b 254 0 2>/dev/null && echo mknod >> /escaped
true
%files
S
kernel() {
    spec kernel-core "$1" <<S
Requires: tools
Provides: installonlypkg(kernel) kernel
$(line)
%install
mkdir -p %{buildroot}/lib/modules/$1 %{buildroot}/boot
head -c $2 /dev/zero | tr '\\0' v > %{buildroot}/lib/modules/$1/vmlinuz
head -c $2 /dev/zero | tr '\\0' i > %{buildroot}/boot/initramfs-$1.img
%files
/lib/modules/$1/vmlinuz
/boot/initramfs-$1.img
S
}
kernel 6.9 200000; kernel 6.10 100000

repository() { # folder packages...
    folder=../$1; shift; mkdir -p "$folder/Packages"
    for name; do cp "build/RPMS/"*/"$name"-1.*.rpm "$folder/Packages/"; done
}
index() { createrepo_c --quiet --no-database --revision 1762000000 --set-timestamp-to-revision "../$1" >&2; }
signed() { rpmsign --define "__gpg /usr/bin/gpg" --define "_gpg_name test" --addsign "$@" >/dev/null; }
all='tools-1.0 more-1.0 first-1.0 second-1.0 extra-1.0 broken-1.0 curious-1.0'
signed build/RPMS/*/*.rpm
repository repo $all tiny-1.0 kernel-core-6.9; index repo
repository next $all tiny-2.0 kernel-core-6.10; index next
gpg --batch --yes --armor --detach-sign -o ../next/repodata/repomd.xml.asc ../next/repodata/repomd.xml 2>/dev/null
repository mixed $all tiny-1.0
rpmsign --delsign ../mixed/Packages/tiny-1.0-1.noarch.rpm >/dev/null 2>&1
rpmsign --delsign ../mixed/Packages/more-1.0-1.noarch.rpm >/dev/null 2>&1
GNUPGHOME=$top/other rpmsign --define "__gpg /usr/bin/gpg" --define '_gpg_name other' --addsign ../mixed/Packages/more-1.0-1.noarch.rpm >/dev/null 2>&1
index mixed
for home in gnupg other; do gpgconf --homedir "$top/$home" --kill all 2>/dev/null || true; done
cd ..; rm -rf work
