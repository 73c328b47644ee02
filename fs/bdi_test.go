package fs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMountDevice(t *testing.T) {
	const info = `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 21 0:52 / /mnt rw,relatime - fuse.memfs memfs rw
41 21 0:53 / /with\040blank\134and\011tab rw - fuse.memfs memfs rw
42 40 0:54 / /mnt rw,relatime - fuse.memfs memfs rw
`
	for path, want := range map[string]string{"/": "8:1", "/mnt": "0:54", "/with blank\\and\ttab": "0:53", "/mn": ""} {
		got, err := mountDevice(strings.NewReader(info), path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is on %q (%v), want %q", path, got, err, want)
		}
	}
}

// TestBoundDirty: the limit that counts is the one that the host keeps, and a host without the files keeps none.
func TestBoundDirty(t *testing.T) {
	b := bdi(t.TempDir())
	if _, err := b.boundDirty(1 << 20); err == nil {
		t.Error("a device without strict_limit is taken for bounded")
	}
	for _, name := range []string{"strict_limit", "max_bytes"} {
		if err := os.WriteFile(filepath.Join(string(b), name), []byte("0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := b.boundDirty(1 << 20); got != 1<<20 || err != nil {
		t.Errorf("bounded to %d (%v), want %d", got, err, 1<<20)
	}
	if strict, err := b.get("strict_limit"); strict != 1 || err != nil {
		t.Errorf("strict_limit is %d (%v)", strict, err)
	}
}
