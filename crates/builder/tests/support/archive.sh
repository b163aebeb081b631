# Makes an archive of tiny packages in the folder $1, with the kernel in the file $2 (an empty one without), signed with a key that nobody else has:
#   tools     what dpkg and shell scripts need, from this machine's own programs; essential
#   foreign   a `tools` of arm64: a name and nothing in it
#   tiny      a file, a configuration step; depends on tools
#   tiny 2.0  in the suites `next` and `noble-security`
#   more      depends on tiny; has a service, a log folder, and a machine id that it should not make
#   kernel    what a boot partition holds, not that it runs; 2.0 in the suite `next`
#   small     a kernel that asks for a login
#   broken    its configuration fails
set -e
umask 022
mkdir -p "$1/work" && cd "$1/work"

control() { # name version more
    mkdir -p "$1/DEBIAN"
    printf 'Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: nobody <nobody@localhost>\n%sDescription: test\n' \
        "$1" "$2" "$3" "$4" > "$1/DEBIAN/control"
}
script() { printf '#!/bin/sh\nset -e\n%s\n' "$2" > "$1/DEBIAN/postinst"; chmod 755 "$1/DEBIAN/postinst"; }

mkdir -p tools/usr/bin tools/usr/sbin tools/usr/lib tools/usr/lib64 tools/etc tools/var/log tools/etc/ssh \
    tools/proc tools/dev tools/run tools/tmp tools/root tools/var/lib/misc tools/etc/skel
chmod 1777 tools/tmp
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "tools/$folder"; done
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
for name in sh ls cat cp mv rm mkdir ln chmod chown touch echo sleep dd id mknod true false test head tail \
    sort grep sed tar gzip diff dpkg dpkg-deb dpkg-split dpkg-query dpkg-divert dpkg-trigger \
    update-alternatives find env mount umount readlink date stat mktemp uname hostname \
    start-stop-daemon ldconfig chroot bash kill seq sync df; do
    path=$(readlink -f "$(type -P $name)")
    case $path in */sbin/*) to=tools/usr/sbin;; *) to=tools/usr/bin;; esac
    cp "$path" "$to/$name"
    for library in $(ldd "$path" 2>/dev/null | grep -o '/[^ )]*' | sort -u); do
        to=tools/usr/${library#/}; to=tools/usr/${to#tools/usr/}; to=$(printf %s "$to" | sed 's|tools/usr/usr/|tools/usr/|')
        mkdir -p "$(dirname "$to")"; cp -L "$library" "$to"
    done
done
cat > tools/usr/bin/systemctl <<'S'
#!/bin/sh
verb=$1; shift; [ "$1" = -- ] && shift
for name; do
    [ -e "/usr/lib/systemd/system/$name.service" ] || { echo "no unit $name" >&2; exit 1; }
    mkdir -p /etc/systemd/system; echo "$verb" > "/etc/systemd/system/$name.$verb"
done
S
chmod 755 tools/usr/bin/systemctl
printf 'root:x:0:0:root:/root:/bin/sh\n' > tools/etc/passwd
printf 'root:x:0:\nstaff:x:50:\nnogroup:x:65534:\n' > tools/etc/group
printf 'root:*:19000:0:99999:7:::\n' > tools/etc/shadow
control tools 1.0 amd64 'Essential: yes
Priority: required
'
# Of another architecture: a name and nothing in it.
control foreign 1.0 arm64 'Essential: yes
Priority: required
'
sed -i 's/^Package: .*/Package: tools/' foreign/DEBIAN/control
control tiny 1.0 all 'Depends: tools
'
mkdir -p tiny/usr/share/tiny; echo one > tiny/usr/share/tiny/version
script tiny 'echo configured >> /var/lib/misc/tiny'
control more 1.0 all 'Depends: tiny
'
mkdir -p more/usr/lib/systemd/system more/var/log/more more/usr/share/more
touch more/usr/lib/systemd/system/more.service
dd if=/dev/zero bs=1k count=64 2>/dev/null | tr '\0' m > more/usr/share/more/data
script more 'echo 0123456789abcdef0123456789abcdef > /etc/machine-id
echo key > /etc/ssh/ssh_host_rsa_key
echo said > /var/log/more/log'
control kernel 1.0 all 'Depends: tools
'
mkdir -p kernel/boot
for what in vmlinuz initrd.img; do head -c 200000 /dev/zero | tr '\0' "${what%%[!v]*}k" > kernel/boot/$what-1; done
control small 1.0 all 'Depends: tools
'
mkdir -p small/boot; cp "${2:-/dev/null}" small/boot/vmlinuz-1; echo none > small/boot/initrd.img-1
control broken 1.0 all 'Depends: tools
'
script broken 'echo this package is broken >&2; exit 7'
cp -r tiny tiny2; sed -i 's/^Version: .*/Version: 2.0/' tiny2/DEBIAN/control; echo two > tiny2/usr/share/tiny/version

suite() { # suite packages...
    suite=$1; shift
    mkdir -p "../pool/$suite"
    release=../dists/$suite/Release
    for arch in amd64 arm64; do
        index=../dists/$suite/main/binary-$arch/Packages; mkdir -p "${index%/*}"; : > $index
        for name; do
            case $(sed -n 's/^Architecture: //p' "$name/DEBIAN/control") in all|$arch) ;; *) continue;; esac
            deb=$(dpkg-deb -Znone --root-owner-group -b "$name" "../pool/$suite" | sed "s/.*'\(.*\)'.*/\1/")
            dpkg-deb -f "$deb" >> $index
            printf 'Filename: pool/%s/%s\nSize: %s\nSHA256: %s\n\n' "$suite" "$(basename "$deb")" \
                "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -c1-64)" >> $index
        done
    done
    printf 'Suite: %s\nCodename: %s\nArchitectures: amd64 arm64\nComponents: main\nDate: Sat, 01 Nov 2025 00:00:00 UTC\nSHA256:\n' \
        "$suite" "$suite" > $release
    for arch in amd64 arm64; do
        index=../dists/$suite/main/binary-$arch/Packages
        printf ' %s %s main/binary-%s/Packages\n' \
            "$(sha256sum $index | cut -c1-64)" "$(stat -c %s $index)" $arch >> $release
    done
    gpg --batch --yes --homedir "$GNUPGHOME" --clearsign -o "../dists/$suite/InRelease" $release 2>/dev/null
}
# A package is the same bytes each time it is made.
export SOURCE_DATE_EPOCH=1700000000
GNUPGHOME=$(mktemp -d); export GNUPGHOME
gpg --batch --passphrase '' --quick-generate-key 'test <test@localhost>' ed25519 sign never 2>/dev/null
gpg --batch --export > ../keys.gpg
find . -exec touch -h -d @1700000000 {} +
suite bookworm tools foreign tiny more kernel small broken
suite next tools tiny2 more
suite noble tools tiny more
suite noble-security tiny2
# A key of somebody else.
rm -rf "$GNUPGHOME"; GNUPGHOME=$(mktemp -d)
gpg --batch --passphrase '' --quick-generate-key 'other <other@localhost>' ed25519 sign never 2>/dev/null
gpg --batch --export > ../other.gpg
gpgconf --homedir "$GNUPGHOME" --kill all 2>/dev/null || true
rm -rf "$GNUPGHOME"
cd ..; rm -rf work
