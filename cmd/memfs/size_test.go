package main

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestParseSize(t *testing.T) {
	const ram = 16<<30 + 12345
	for text, want := range map[string]uint64{
		"1": 1, "65536": 65536, "64K": 64 << 10, "64k": 64 << 10, "64M": 64 << 20, "64MiB": 64 << 20, "1.5G": 3 << 29, "2T": 2 << 40,
		"0.5K": 512, "9007199254740993": 9007199254740993, "25%": 4 << 30, "100%": 16 << 30, "0.01%": 1717987 + 1,
	} {
		if got, err := parseSize(text, ram); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "-1", "+1M", "0", "0M", "1Q", "1MB", "1 M", "1M1", "0x10", "1_000", "NaN", "Inf", "inf%",
		"101%", "%", "0.1", "5000P", "1e3Mi", "99999999999999999999", "--"} {
		if got, err := parseSize(text, ram); err == nil {
			t.Errorf("%q was taken as %d", text, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 1: "1", 1024: "1K", 1536: "1536", 64 << 20: "64M", 3 << 29: "1536M", 1 << 40: "1T", 1<<40 + 1: "1099511627777"} {
		if got := formatSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for n := uint64(1); n < 1<<50; n = n*7 + 13 {
		if got, err := parseSize(formatSize(n), 0); err != nil || got != n {
			t.Errorf("%d → %s → %d, %v", n, formatSize(n), got, err)
		}
	}
	for n, want := range map[uint64]string{0: "0", 1023: "1023", 1024: "1K", 1536: "1.5K", 64 << 20: "64M", 1<<30 + 1: "1G", math.MaxUint64: "16384P"} {
		if got := roundSize(n); got != want {
			t.Errorf("%d for people: %s, want %s", n, got, want)
		}
	}
}

func TestCgroupLimit(t *testing.T) {
	root := t.TempDir()
	self := filepath.Join(root, "self")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := cgroupLimit(self, root); got != math.MaxUint64 {
		t.Errorf("no control group: %d", got)
	}
	write(self, "4:memory:/old\n0::/a/b/c\n")
	write(filepath.Join(root, "a/b/c/memory.max"), "max\n")
	if got := cgroupLimit(self, root); got != math.MaxUint64 {
		t.Errorf("no limit: %d", got)
	}
	write(filepath.Join(root, "a/b/memory.max"), "2000\n")
	write(filepath.Join(root, "a/memory.max"), "1000\n")
	if got := cgroupLimit(self, root); got != 1000 {
		t.Errorf("the parent's limit: %d", got)
	}
	if ramBytes() < 1<<20 {
		t.Errorf("this machine has %d bytes of RAM", ramBytes())
	}
}
