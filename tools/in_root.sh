#!/bin/sh
# Run a command in a folder that contains another Debian system, on this project's files.
#
#   tools/in_root.sh FOLDER COMMAND [ARGUMENT...]
#
# The command finds the current folder, /proc, /dev, /tmp, the resolver, the certificates and pip's settings of this machine
# under the same paths as outside, inherits the environment, and has its own /dev/shm. All mounts belong to the command and
# disappear when the command ends. The script needs root.

set -eu
folder=$(cd "$1" && pwd)
shift

# Run this script again, in its own mount namespace.
if [ "${IN_ROOT:-}" != "$folder" ]; then
    IN_ROOT=$folder exec unshare --mount --propagation private /bin/sh "$0" "$folder" "$@"
fi
unset IN_ROOT

# Make the folder a mount point, which becomes the root. Some tests make user namespaces, and a process in a plain
# chroot cannot do this.
mount --bind "$folder" "$folder"

bind() { # path: a folder or a file, if there is one
    [ -e "$1" ] || return 0
    if [ -d "$1" ]; then
        mkdir -p "$folder$1"
    else
        mkdir -p "$folder${1%/*}"
        [ -e "$folder$1" ] || : >"$folder$1"
    fi
    mount --rbind "$1" "$folder$1"
}
bind /proc
bind /sys
bind /dev
mount -t tmpfs tmpfs "$folder/dev/shm"
bind /tmp
bind /etc/resolv.conf
bind /etc/hosts
bind /etc/ssl/certs
bind /etc/pip.conf
case $PWD in /tmp/*) ;; *) bind "$PWD" ;; esac

work=$PWD
cd "$folder"
pivot_root . .
umount -l .
cd "$work"
exec "$@"
