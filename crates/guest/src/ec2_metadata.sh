#!/bin/sh
# Answers one HTTP request from the files of a folder: /VERSION/a/b is the file a_b.
return_with() {
    printf 'HTTP/1.1 %s\r\nServer: EC2ws\r\nContent-Type: text/plain\r\nContent-Length: %s\r\nConnection: close\r\n\r\n' "$1" "$2"
}
read -r method path rest
end=$(printf '\r')
while read -r line && [ -n "${line%"$end"}" ]; do :; done
path=${path#/}
path=${path#*/}
path=${path%/}
case "$method $path" in
    "PUT api/token") return_with "200 OK" 5; printf token; exit ;;
    *..*) path=none ;;
    "GET meta-data"* | "GET user-data" | "GET dynamic"*) ;;
    *) path=none ;;
esac
name=$1/$(printf %s "$path" | tr / _)
if [ -f "$name" ]; then
    return_with "200 OK" "$(wc -c <"$name")"
    cat "$name"
else
    return_with "404 Not Found" 0
fi
