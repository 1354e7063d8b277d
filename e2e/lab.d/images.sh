# The images the lab makes by itself, and pushing others.
# shellcheck shell=bash

IMAGES=(pause:3.10 counter:1 checks:1 iouring:2 mends:1 redis:1 toolbox:1)

push() { python3 "$PARTS/push.py" "$REGISTRY_ADDRESS" "$@"; } # NAME:TAG FILE… [OPTIONS]

push_image() { # NAME:TAG
  case $1 in
  redis:*) push "$1" "$(cached redis.tar)" --workdir /data --entrypoint redis-server ;;
  toolbox:*) push "$1" "$(cached redis.tar)" --entrypoint sleep infinity ;;
  *) push "$1" "$(cached "${1%%:*}")" ;;
  esac
}
image_there() { # NAME:TAG
  cp_curl -I -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$REGISTRY_ADDRESS/v2/${1%%:*}/manifests/${1#*:}" >/dev/null
}

images_up() {
  local image
  for image in "${IMAGES[@]}"; do
    image_there "$image" || push_image "$image" >"$LOG/push.log" 2>&1 || {
      cat "$LOG/push.log" >&2
      die "$image could not be pushed to the lab's registry; see: e2e/lab logs registry"
    }
  done
}

# Everything the registry holds, as a pod would name it.
images_list() {
  python3 - "$REGISTRY_ADDRESS" <<'P' || die "the lab's registry does not answer; is the lab up? e2e/lab status"
import json, sys, urllib.request
address = sys.argv[1]
get = lambda path: json.load(urllib.request.urlopen(f"http://{address}/v2/{path}", timeout=10))
for name in get("_catalog?n=1000").get("repositories") or []:
    for tag in get(f"{name}/tags/list").get("tags") or []:
        print(f"{address}/{name}:{tag}")
P
}
