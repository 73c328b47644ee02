package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"memfs/mm"
	"memfs/mm/store"
)

// newMountFlags makes the flags of mount, set in o.
func newMountFlags(o *mountOptions) *pflag.FlagSet {
	f := pflag.NewFlagSet("mount", pflag.ContinueOnError)
	o.register(f)
	return f
}

// parse reads a command line of mount as far as it goes without mounting.
func parse(args ...string) (*mountOptions, error) {
	o := &mountOptions{}
	f := newMountFlags(o)
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	return o, o.finish(f)
}

func TestMountOptions(t *testing.T) {
	o, err := parse("--memory=64M", "--pagefile=/var/tmp/pf,size=1M-2M", "--host-share=25%", "--nr-inodes=100", "--mode=700",
		"--uid=1", "--gid=2", "--proc=visible", "--allow-other=false", "-f")
	if err != nil {
		t.Fatal(err)
	}
	if o.memory != 64<<20 || o.pageFile != (pageFileSpec{path: "/var/tmp/pf", min: 1 << 20, max: 2 << 20}) || o.hostShare != 0.25 ||
		o.inodes != 100 || o.mode != 0o700 || o.uid != 1 || o.gid != 2 || o.procName != (procName{".proc", true}) || o.allowOther || !o.foreground {
		t.Errorf("%+v", o)
	}
	if o, err = parse(); err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if quarter := ramBytes() / 4; uint64(o.memory) > quarter || uint64(o.memory) < quarter-1<<20 || o.allowOther != root || o.pageFile != (pageFileSpec{}) {
		t.Errorf("defaults: %+v", o)
	}
}

// -o takes every flag, with tmpfs's spelling.
func TestMountOptionList(t *testing.T) {
	o, err := parse("-o", "rw,nofail,_netdev,x-systemd.automount,memory=32M,nr_inodes=7,mode=1755,uid=3", "-o", "pagefile=/x,pagefile_size=1G,proc=top,allow_other,nonempty")
	if err != nil {
		t.Fatal(err)
	}
	if o.memory != 32<<20 || o.inodes != 7 || o.mode != 0o1755 || o.uid != 3 || o.pageFile != (pageFileSpec{path: "/x", max: 1 << 30}) ||
		o.procName != (procName{"top", true}) || !o.allowOther || !o.nonempty {
		t.Errorf("%+v", o)
	}
	if o, err = parse("-o", "noswap,memory=32M"); err != nil || !o.pageFile.none {
		t.Errorf("noswap: %+v, %v", o, err)
	}
	for list, want := range map[string]string{
		"speed=9": "speed=9", "memory": "a value is missing", "memory=": "memory=",
		"options=memory": "unknown", "mode=8": "octal", "nr_inodes=-1": "nr_inodes=-1",
	} {
		_, err := parse("-o", list)
		var coded exitError
		if !errors.As(err, &coded) || coded.code != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("-o %s: %v; want a usage error with %q", list, err, want)
		}
	}
}

func TestPageFileSpec(t *testing.T) {
	for text, want := range map[string]pageFileSpec{
		"none": {none: true}, "/a/b": {path: "/a/b"}, "rel": {path: "rel"}, "/a,size=1M": {path: "/a", max: 1 << 20},
		"size=1M-2M": {min: 1 << 20, max: 2 << 20}, "size=50%": {max: 2 << 30},
	} {
		if got, err := parsePageFile(text, 4<<30); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", ",size=1M", "/a,b", "/a,size", "size=", "size=2M-1M", "size=1", "size=-1M", "size=1M-", "/a,size=1M,x"} {
		if got, err := parsePageFile(text, 4<<30); err == nil {
			t.Errorf("%q was taken as %+v", text, got)
		}
	}
}

func TestOpenPageFile(t *testing.T) {
	dir := t.TempDir()
	p, err := openPageFile(pageFileSpec{path: dir, min: 1 << 20, max: 2 << 20}, 64<<20, 0)
	if err != nil {
		t.Fatal(err)
	}
	if p.max != 2<<20/mm.PageSize || p.Size() != 1<<20/mm.PageSize {
		t.Errorf("at most %d slots, %d from the start", p.max, p.Size())
	}
	p.Close()

	free, err := store.FreeSpace(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err = openPageFile(pageFileSpec{path: filepath.Join(dir, "new")}, 16<<20, 0)
	if err != nil {
		t.Fatal(err)
	}
	if most := max(free, 1<<30); p.max*mm.PageSize > min(32*16<<20, most/2+1<<20) || p.max == 0 {
		t.Errorf("default: at most %d slots with %d bytes free", p.max, free)
	}
	p.Close()

	p, err = openPageFile(pageFileSpec{path: filepath.Join(dir, "new")}, 16<<20, 33*16<<20)
	if err != nil {
		t.Fatal(err)
	}
	if p.max*mm.PageSize < 33*16<<20 {
		t.Errorf("asked to be allowed %d bytes: at most %d slots", 33*16<<20, p.max)
	}
	p.Close()

	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		spec  pageFileSpec
		least uint64
		want  string
	}{
		{pageFileSpec{path: there}, 0, "already"},
		{pageFileSpec{path: filepath.Join(dir, "no/such")}, 0, "no such directory"},
		{pageFileSpec{path: filepath.Join(there, "x")}, 0, "--pagefile"},
		{pageFileSpec{path: "/proc"}, 0, "--pagefile"},
		{pageFileSpec{path: dir, max: 1 << 60}, 0, "are free there"},
		{pageFileSpec{path: dir}, 1 << 60, "--size needs"},
	} {
		p, err := openPageFile(c.spec, 64<<20, c.least)
		if err == nil {
			p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "page file") {
			t.Errorf("%+v: %v; want %q", c.spec, err, c.want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestRequestBounds(t *testing.T) {
	for _, c := range []struct {
		memory            size
		request, inflight int
	}{
		{16 << 20, 256 << 10, 2 << 20},
		{64 << 20, 256 << 10, 8 << 20},
		{128 << 20, 256 << 10, 8 << 20},
		{256 << 20, 1 << 20, 32 << 20},
		{16 << 30, 1 << 20, 32 << 20},
	} {
		s := &session{o: &mountOptions{memory: c.memory}}
		if s.maxRequest() != c.request || s.maxInflight() != c.inflight {
			t.Errorf("%s: requests of %d, %d in flight; want %d, %d", &c.memory, s.maxRequest(), s.maxInflight(), c.request, c.inflight)
		}
	}
}
