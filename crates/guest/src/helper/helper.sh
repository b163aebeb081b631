#!/bin/sh
# Larder's helper: answers the host that runs this machine, on a virtio-serial port.
# What it understands is told in docs/guest-helper.md. It needs a POSIX shell and coreutils; perl,
# ssh-keygen, systemctl and cloud-init are used where they are.
#
# Commands that are asked often start no process: under emulation each costs some 10 ms.

PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
unset IFS
umask 022
port=${1:-/dev/virtio-ports/larder.agent.0}

answer() { printf '%s %s\n' "$number" "$*" >&3; }
done_with() { answer ok "$@"; }
refuse() { answer error "$@"; }

# Memory that is added comes online by itself, where the kernel can do that.
prepare() {
    machine=$(uname -m)
    auto=/sys/devices/system/memory/auto_online_blocks
    [ -w "$auto" ] && echo online >"$auto"
}

# Sets `value` to the first line of a file, or to nothing.
first_line() {
    value=
    [ -r "$1" ] && read -r value <"$1"
    :
}

report() {
    memory_kib=0
    while read -r key value rest; do
        case $key in MemTotal:) memory_kib=$value && break ;; esac
    done </proc/meminfo
    blocks=0 offline=0
    for state in /sys/devices/system/memory/memory[0-9]*/state; do
        first_line "$state"
        case $value in
            online) blocks=$((blocks + 1)) ;;
            offline) offline=$((offline + 1)) ;;
        esac
    done
    text="memory_kib=$memory_kib memory_blocks=$blocks memory_blocks_offline=$offline"
    first_line /sys/devices/system/memory/block_size_bytes
    text="$text block_bytes_hex=$value"
    first_line /sys/devices/system/cpu/online
    text="$text cpus=$value"
    first_line /etc/machine-id
    text="$text machine_id=$value"
    first_line /proc/sys/kernel/hostname
    text="$text host_name=$value"
    first_line /proc/sys/kernel/random/boot_id
    text="$text boot_id=$value"
    read -r value rest </proc/uptime
    done_with "$text uptime_s=$value"
}

online() {
    for state in /sys/devices/system/cpu/cpu[0-9]*/online; do
        first_line "$state"
        [ "$value" = 0 ] && echo 1 >"$state"
    done 2>/dev/null
    for state in /sys/devices/system/memory/memory[0-9]*/state; do
        first_line "$state"
        [ "$value" = offline ] && echo online >"$state"
    done 2>/dev/null
    report
}

drop_caches() {
    sync
    # What a name refers to can go only after the name has.
    for round in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done
    [ -e /proc/sys/vm/compact_memory ] && echo 1 >/proc/sys/vm/compact_memory
    done_with
}

# The kernel's random numbers: mixed in by any kernel, used at once where the pool can be told so.
entropy() {
    case $1 in '' | *[!0-9a-f]*) refuse 'not hexadecimal' && return ;; esac
    [ -e /var/lib/systemd/random-seed ] && : >/var/lib/systemd/random-seed
    if command -v perl >/dev/null; then
        perl -e 'my $b = pack("H*", scalar <STDIN>); open(my $f, ">", "/dev/urandom") or exit 1;
            my $n = length $b; ioctl($f, 0x40085203, pack("iia*", 8 * $n, $n, $b)) or exit 1;
            ioctl($f, 0x5207, 0); exit 0;' <<END && done_with credited && return
$1
END
    fi
    printf '%s' "$1" >/dev/urandom && done_with mixed || refuse 'it could not be written'
}

machine_id() {
    case $1 in *[!0-9a-f]*) refuse 'not hexadecimal' && return ;; esac
    [ ${#1} = 32 ] || { refuse 'not 32 digits' && return; }
    printf '%s\n' "$1" >/etc/machine-id || { refuse 'it could not be written' && return; }
    if [ -e /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ]; then
        printf '%s\n' "$1" >/var/lib/dbus/machine-id
    fi
    first_line /etc/machine-id
    done_with "$value"
}

host_name() {
    case $1 in '' | *[!a-zA-Z0-9.-]*) refuse 'not a host name' && return ;; esac
    printf '%s\n' "$1" >/proc/sys/kernel/hostname || { refuse 'the kernel refused it' && return; }
    printf '%s\n' "$1" >/etc/hostname || { refuse 'it could not be written' && return; }
    hosts=
    if [ -r /etc/hosts ]; then
        while read -r line; do
            case $line in 127.0.1.1[!0-9]*) ;; *) hosts="$hosts$line
" ;; esac
        done </etc/hosts
    fi
    case $1 in *.*) names="$1 ${1%%.*}" ;; *) names=$1 ;; esac
    printf '%s127.0.1.1 %s\n' "$hosts" "$names" >/etc/hosts
    first_line /proc/sys/kernel/hostname
    done_with "$value"
}

# Says `ready`, takes the time in a line of its own, so that what it takes to start a program does not
# make the clock wrong, and says what the clock is then.
clock() {
    if [ "$machine" = x86_64 ] && command -v perl >/dev/null; then
        perl -e 'my $number = shift; open(my $port, "+<&=", 3) or exit 1;
            syswrite($port, "$number ready\n"); my $line = "";
            while ($line !~ /\n/) { sysread($port, $line, 1, length $line) or exit 0 }
            $line =~ /^(\d{1,11})\.(\d{9})$/ or do { syswrite($port, "$number error not a time\n"); exit 0 };
            my $time = pack("qq", $1, $2);
            syscall(227, 0, $time) == 0
                or do { syswrite($port, "$number error the kernel refused it\n"); exit 0 };
            syscall(228, 0, $time); my ($s, $n) = unpack("qq", $time);
            syswrite($port, sprintf("%s ok %d.%09d\n", $number, $s, $n))' "$number" && return
    fi
    answer ready
    read -r time <&3
    case $time in '' | *[!0-9.]*) refuse 'not a time' && return ;; esac
    date -u -s "@$time" >/dev/null || { refuse 'the kernel refused it' && return; }
    done_with "$(date -u +%s.%N)"
}

tell_sshd() {
    first_line /run/sshd.pid
    case $value in '' | *[!0-9]*) ;; *) kill -HUP "$value" ;; esac
}

# One key at once; the slow ones follow.
ssh_keys() {
    if [ ! -d /etc/ssh ] || ! command -v ssh-keygen >/dev/null; then
        done_with none
        return
    fi
    key=/etc/ssh/ssh_host_ed25519_key
    rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
    ssh-keygen -q -t ed25519 -N '' -f "$key" </dev/null >/dev/null 2>&1 ||
        { refuse 'ssh-keygen failed' && return; }
    tell_sshd 2>/dev/null
    (
        exec 3>&-
        for kind in ecdsa rsa; do
            nice ssh-keygen -q -t "$kind" -N '' -f "/etc/ssh/ssh_host_${kind}_key" </dev/null
        done
        tell_sshd
    ) >/dev/null 2>&1 &
    first_line "$key.pub"
    done_with "$value"
}

# put PATH MODE LEN, then LEN bytes.
put() {
    case $3 in '' | *[!0-9]*) refuse 'no length' && return ;; esac
    [ -d "${1%/*}" ] || mkdir -p "${1%/*}"
    umask 077
    # All bytes are taken also where they cannot be written: what is left would be read as commands.
    head -c "$3" <&3 | { cat >"$1.larder-new" || { cat >/dev/null && false; }; } &&
        chmod "$2" "$1.larder-new" && mv -f "$1.larder-new" "$1" && taken=1 || taken=
    umask 022
    [ "$taken" ] && done_with "$3" || refuse 'it could not be written'
}

# authorize USER LEN, then LEN bytes of public keys, added to those that are there.
authorize() {
    case $2 in '' | *[!0-9]*) refuse 'no length' && return ;; esac
    keys=$(head -c "$2" <&3)
    home= group=
    while IFS=: read -r name password id group rest home shell; do
        [ "$name" = "$1" ] && break
        home=
    done </etc/passwd
    [ -n "$home" ] || { refuse "no user $1" && return; }
    mkdir -p "$home/.ssh" && chmod 700 "$home/.ssh" &&
        printf '%s\n' "$keys" >>"$home/.ssh/authorized_keys" &&
        chmod 600 "$home/.ssh/authorized_keys" && chown -R "$id:$group" "$home/.ssh" &&
        done_with "$home" && return
    refuse 'the keys could not be written'
}

# What keeps the old machine id or host name is started again, and nobody waits for it.
settle() {
    if [ -d /run/systemd/system ]; then
        (
            exec 3>&-
            for unit in systemd-journald systemd-networkd; do
                systemctl --no-block try-restart "$unit.service"
            done
        ) >/dev/null 2>&1 </dev/null &
    fi
    done_with
}

# Applies the seed that was put into /var/lib/cloud/seed/nocloud.
user_data() {
    seed=/var/lib/cloud/seed/nocloud
    if command -v cloud-init >/dev/null; then
        (
            exec 3>&-
            rm -rf /var/lib/cloud/instance /var/lib/cloud/data /run/cloud-init/instance-data.json
            cloud-init init --local
            cloud-init init
            cloud-init modules --mode=config
            cloud-init modules --mode=final
        ) >/var/log/larder-user-data.log 2>&1 </dev/null &
        done_with cloud-init
        return
    fi
    first_line "$seed/user-data"
    case $value in
        '#!'*)
            chmod 700 "$seed/user-data"
            ("$seed/user-data" 3>&-) >/var/log/larder-user-data.log 2>&1 </dev/null &
            done_with script
            ;;
        '') done_with none ;;
        *) refuse 'the guest has no cloud-init, and the user-data is no script' ;;
    esac
}

serve() {
    case $verb in
        ping) done_with larder-helper 1 ;;
        report) report ;;
        online) online ;;
        drop-caches) drop_caches ;;
        entropy) entropy "$1" ;;
        machine-id) machine_id "$1" ;;
        host-name) host_name "$1" ;;
        clock) clock ;;
        ssh-keys) ssh_keys ;;
        put) put "$1" "$2" "$3" ;;
        authorize) authorize "$1" "$2" ;;
        settle) settle ;;
        user-data) user_data ;;
        *) refuse "unknown command" ;;
    esac
}

exec 3<>"$port" || exit 1
prepare 2>/dev/null
number=0
done_with larder-helper 1
while [ -e "$port" ]; do
    if ! read -r number verb first second third rest <&3; then
        # The host has closed its end: nothing tells when it opens it again.
        sleep 1
        continue
    fi
    case $number in '' | *[!0-9]*) continue ;; esac
    serve "$first" "$second" "$third" 2>/dev/null
done
