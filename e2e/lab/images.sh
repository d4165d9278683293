# shellcheck shell=bash disable=SC2034,SC2153  # names shared with the scripts beside it
# Container images, built by buildah from ordinary Dockerfiles into the cache, named by what went into them.

REGISTRY=kanchi.lab # names only: nothing answers there, the node is given the images

# A storage of the lab's own leaves the machine's images alone.
builder() { buildah --root "$LAB_HOME/storage" --runroot "$LAB_HOME/storage-run" "$@"; }

# image <name> <tag> <context> [bud argument…]: an archive in the cache; its path in IMAGE_ARCHIVE, its name in IMAGE.
image() {
  local name=$1 tag=$2 context=$3
  shift 3
  IMAGE=$REGISTRY/$name:$tag
  IMAGE_ARCHIVE=$IMAGES/$name-$tag.tar
  [ ! -f "$IMAGE_ARCHIVE" ] || return 0
  step "image $name:$tag" image_archive "$IMAGE" "$IMAGE_ARCHIVE" "$context" "$@"
}

image_archive() { # name, archive, context, bud arguments
  local name=$1 archive=$2 context=$3
  shift 3
  mkdir -p "$IMAGES"
  builder bud --isolation chroot --layers=false --pull-never -t "$name" "$@" "$context"
  rm -f "$archive.part"
  builder push "$name" "docker-archive:$archive.part:$name"
  mv "$archive.part" "$archive"
}

# from_packages <name> <tag> <variant> <packages>: an image of nothing but Debian packages.
from_packages() {
  local name=$1 tag=$2
  IMAGE=$REGISTRY/$name:$tag
  IMAGE_ARCHIVE=$IMAGES/$name-$tag.tar
  # It is the base of others, so it must be in the builder's storage, too.
  if [ -f "$IMAGE_ARCHIVE" ] && builder inspect --type image "$IMAGE" >/dev/null 2>&1; then return 0; fi
  step "image $name:$tag from Debian packages" packages_archive "$@"
}

packages_archive() {
  local name=$1 tag=$2 variant=$3 packages=$4 context
  context=$(mktemp -d "$LAB_HOME/context-XXXXXX")
  cp "$LAB/images/rootfs/Dockerfile" "$context/"
  # The user every pod runs as must have a name: initdb and Erlang ask for it.
  # shellcheck disable=SC2016  # $1 is mmdebstrap's: the folder it fills
  nice -n 5 mmdebstrap --variant="$variant" --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --customize-hook='echo "nonroot:x:65532:65532:nonroot:/home/nonroot:/usr/sbin/nologin" >>"$1/etc/passwd"' \
    --customize-hook='echo "nonroot:x:65532:" >>"$1/etc/group"; install -d -o 65532 -g 65532 "$1/home/nonroot"' \
    --customize-hook='rm -rf "$1"/var/lib/postgresql/*/main "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
    "$DEBIAN_RELEASE" "$context/rootfs.tar"
  image_archive "$REGISTRY/$name:$tag" "$IMAGES/$name-$tag.tar" "$context"
  rm -rf "$context"
}

packages_key() {
  { printf '%s\n' "$DEBIAN_RELEASE" "$@" && cat "$LAB/images/rootfs/Dockerfile" && declare -f packages_archive; } | digest
}

# === what the cluster itself needs ===

build_system_images() {
  local pause coredns=$COMPONENTS/coredns-$COREDNS_VERSION dockerfile=$LAB/images/static/Dockerfile
  pause=$COMPONENTS/pause-$(digest <"$LAB/pause/main.go")
  image pause "${pause##*-}" "$pause" -f "$dockerfile" --build-arg PROGRAM=pause
  PAUSE_IMAGE=$IMAGE PAUSE_ARCHIVE=$IMAGE_ARCHIVE
  image coredns "$COREDNS_VERSION" "$coredns" -f "$dockerfile" --build-arg PROGRAM=coredns
  COREDNS_IMAGE=$IMAGE COREDNS_ARCHIVE=$IMAGE_ARCHIVE
}

# === the services around Kanchi ===

SERVICE_PACKAGES=ca-certificates,redis-server,redis-tools,rabbitmq-server,postgresql-15,postgresql-client-15,python3,python3-venv,procps

build_services_image() {
  from_packages services "$(packages_key "$SERVICE_PACKAGES")" essential "$SERVICE_PACKAGES"
}

# build_celery_image [version]: the sample application; without a version the newest Celery, looked for anew every week.
build_celery_image() {
  local version=${1:-} newest tag app=$CHECKOUT/examples/celery-app
  build_services_image
  newest=$([ -n "$version" ] || date +%G-%V)
  tag=${version:-newest}-$({ echo "$IMAGE $newest" && files_of "$app"; } | digest)
  # pip trusts what the machine trusts: a company's own authority in front of PyPI, for example.
  image celery-app "$tag" "$app" --build-arg BASE="$IMAGE" --build-arg CELERY_VERSION="$version" \
    -v "$(readlink -f "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}"):/etc/ssl/certs/ca-certificates.crt:ro"
}

files_of() { (cd "$1" && find . -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum); }

# === this checkout ===

# The binaries are built by the machine's cargo, which keeps what it compiled, and copied onto a small base.
build_binaries() {
  command -v cargo >/dev/null || die "cargo is missing: install Rust (rustup.rs)"
  say "compile kanchi-operator and kanchi-monitor into $CARGO_TARGET_DIR/lab"
  nice -n 5 env "CARGO_TARGET_DIR=$CARGO_TARGET_DIR" cargo build --locked --profile lab \
    --manifest-path "$CHECKOUT/Cargo.toml" -p kanchi-operator -p kanchi-monitor
}

BASE_PACKAGES=libc6,libgcc-s1,ca-certificates

build_kanchi_image() { # operator or monitor
  from_packages base "$(packages_key "$BASE_PACKAGES")" extract "$BASE_PACKAGES"
  local part=$1 base=$IMAGE context tag dockerfile=$CHECKOUT/$1/Dockerfile
  context=$(mktemp -d "$LAB_HOME/context-XXXXXX")
  cp "$CARGO_TARGET_DIR/lab/kanchi-$part" "$context/"
  tag=$({ echo "$base" && cat "$dockerfile" "$context/kanchi-$part"; } | digest)
  image "kanchi-$part" "$tag" "$context" -f "$dockerfile" --build-arg BASE="$base" --build-arg BINARY=prebuilt
  rm -rf "$context"
}

# === into the node ===

# load_images <archive…>: what this node has already is not sent again.
load_images() {
  local archive
  mkdir -p "$RUN/loaded"
  for archive in "$@"; do
    [ ! -f "$RUN/loaded/$(basename "$archive")" ] || continue
    ctr -a "$RUN/containerd.sock" -n k8s.io images import "$archive" >/dev/null
    touch "$RUN/loaded/$(basename "$archive")"
  done
}

# give_to_node <variable> <name>…: loads the image built last, also under stable names, and notes it in images.env.
give_to_node() {
  local variable=$1 name
  shift
  load_images "$IMAGE_ARCHIVE"
  for name in "$@"; do
    ctr -a "$RUN/containerd.sock" -n k8s.io images tag --force "$IMAGE" "$REGISTRY/$name" >/dev/null
  done
  touch "$RUN/images.env"
  sed -i "/^$variable=/d" "$RUN/images.env"
  echo "$variable=$IMAGE" >>"$RUN/images.env"
}
