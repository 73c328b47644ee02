package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// controlTimeout is how long a mount has to answer a verb that only looks.
const controlTimeout = 20 * time.Second

// control is the control tree of a live mount, as its clients see it.
type control struct {
	path string // as the user gave it
	dir  string
}

// openControl finds the control tree of the memfs mount on path.
func openControl(path string) (*control, error) {
	m, err := findMount(path)
	if err != nil {
		return nil, err
	}
	return openMount(path, m)
}

// openMount is the control tree of a mount that the user has named by path.
func openMount(path string, m mountEntry) (*control, error) {
	if owner := m.owner(); owner != strconv.Itoa(os.Geteuid()) && !m.allowsOthers() {
		return nil, fmt.Errorf("%s: only user %s may look into this mount, and not even root: "+
			"it was mounted without --allow-other", path, owner)
	}
	name := defaultProc
	if d := findDaemon(m); d != nil {
		defer d.close()
		if d.Proc != "" && !strings.ContainsRune(d.Proc, '/') {
			name = d.Proc
		}
	}
	switch err := systemCall(probeTimeout, "statfs", m.mountpoint); {
	case err == errTimeout:
		return nil, fmt.Errorf("%s: the mount does not answer; `memfs umount --force %s` ends it", path, path)
	case errors.Is(err, unix.ENOTCONN):
		return nil, fmt.Errorf("%s: the mount's daemon has died; `memfs umount %s` clears it away, "+
			"and so does mounting again", path, path)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &control{path: path, dir: filepath.Join(m.mountpoint, name)}, nil
}

// fail says which control file an error is about.
func (c *control) fail(name string, err error) error {
	folder, _, below := strings.Cut(name, "/")
	switch {
	case (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) && below && folder != policyFolder:
		return fmt.Errorf("%s: %s is for its owner and for root", c.path, name)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %s is for the owner of the mount and for root", c.path, name)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s: the mount has no control file %s", c.path, name)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %s: too many wait for the host to write back; try again", c.path, name)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s: the mount is read-only; `mount -o remount,rw %s` changes that", c.path, c.path)
	}
	return fmt.Errorf("%s: %s: %s", c.path, name, reason(err))
}

// within runs f, which may hang with the mount, and gives up after the time-out.
func (c *control) within(timeout time.Duration, f func() error) error {
	result := make(chan error, 1)
	go func() { result <- f() }()
	select {
	case err := <-result:
		return err
	case <-time.After(timeout):
		return fmt.Errorf("%s: the mount did not answer within %v", c.path, timeout)
	}
}

// read is the contents of a control file.
func (c *control) read(name string) (text []byte, err error) {
	err = c.within(controlTimeout, func() error {
		var readErr error
		text, readErr = os.ReadFile(filepath.Join(c.dir, name))
		if readErr != nil {
			return c.fail(name, readErr)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return text, nil
}

// command has the manager carry a command out and returns what it answers.
func (c *control) command(line string, timeout time.Duration) (answer string, err error) {
	err = c.within(timeout, func() error {
		f, err := os.OpenFile(filepath.Join(c.dir, "ctl"), os.O_RDWR, 0)
		if err != nil {
			return c.fail("ctl", err)
		}
		defer f.Close()
		_, writeErr := f.WriteString(line + "\n")
		text, readErr := io.ReadAll(f)
		answer = strings.TrimSpace(string(text))
		switch {
		case answer != "":
			return nil // it says what came of it
		case writeErr != nil:
			return c.fail("ctl", writeErr)
		case readErr != nil:
			return c.fail("ctl", readErr)
		}
		return c.fail("ctl", errors.New("no answer"))
	})
	if err != nil {
		return "", err
	}
	return answer, nil
}

func newInfoCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:   "info [PATH]",
		Short: "Show where a mount's memory is",
		Long: "info shows what the memory of a mount is divided into and where it is, as of now. JSON is the control file\n" +
			"meminfo.json.",
		Example: "  memfs info /tmp/m\n  memfs info --json /tmp/m | jq .active_bytes",
		Args:    onePath,
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := out.asJSON()
			if err != nil {
				return err
			}
			p, err := locate(here(args))
			if err != nil {
				return err
			}
			if asJSON {
				return p.show(c.OutOrStdout(), "meminfo", true)
			}
			text, err := p.info()
			if err == nil {
				_, err = io.WriteString(c.OutOrStdout(), text)
			}
			return err
		},
	}
	out.register(c)
	return c
}

// meminfo is what info takes from meminfo.json, in bytes.
type meminfo struct {
	Total       uint64 `json:"mem_total_bytes"`
	Frames      uint64 `json:"frames_bytes"`
	Zeroed      uint64 `json:"zeroed_bytes"`
	Free        uint64 `json:"free_bytes"`
	Standby     uint64 `json:"standby_bytes"`
	Modified    uint64 `json:"modified_bytes"`
	NoWrite     uint64 `json:"modified_no_write_bytes"`
	Transition  uint64 `json:"transition_bytes"`
	Active      uint64 `json:"active_bytes"`
	Host        uint64 `json:"host_cached_bytes"`
	HostLimit   uint64 `json:"host_limit_bytes"`
	Records     uint64 `json:"records_bytes"`
	SwapTotal   uint64 `json:"swap_total_bytes"`
	SwapFree    uint64 `json:"swap_free_bytes"`
	Zswapped    uint64 `json:"zswapped_bytes"`
	Zswap       uint64 `json:"zswap_bytes"`
	FileCommit  uint64 `json:"file_commit_bytes"`
	FileLimit   uint64 `json:"file_limit_bytes"`
	CommitLimit uint64 `json:"commit_limit_bytes"`
	Commit      uint64 `json:"committed_as_bytes"`
	CommitPeak  uint64 `json:"commit_peak_bytes"`
}

type limits struct {
	InodesUsed uint64 `json:"inodes_used"`
	InodesMax  uint64 `json:"inodes_max"`
}

type pageFiles struct {
	Files []struct {
		Max  uint64 `json:"max_pages"`
		Size uint64 `json:"size_pages"`
		Used uint64 `json:"used_pages"`
		Name string `json:"name"`
	} `json:"pagefiles"`
}

const slotBytes = 4096

func (c *control) readJSON(name string, into any) error {
	text, err := c.read(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %s: %w", c.path, name, err)
	}
	return nil
}

// info is the memory arithmetic of a mount in a few lines.
func (c *control) info() (string, error) {
	var m meminfo
	var l limits
	var p pageFiles
	for name, into := range map[string]any{"meminfo.json": &m, "limits.json": &l, "pagefiles.json": &p} {
		if err := c.readJSON(name, into); err != nil {
			return "", err
		}
	}
	var b bytes.Buffer
	line := func(name string, bytes uint64, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %9s   %s\n", name, roundSize(bytes), fmt.Sprintf(format, args...))
	}
	line("memory", m.Total, "all that the mount may cost the host")
	line("host cache", m.Host, "of at most %s: the host kernel's copies of our pages", roundSize(m.HostLimit))
	line("frames", m.Frames, "active %s, standby %s, modified %s, free %s, under I/O %s",
		roundSize(m.Active), roundSize(m.Standby), roundSize(m.Modified+m.NoWrite), roundSize(m.Zeroed+m.Free),
		roundSize(m.Transition))
	line("records", m.Records, "page tables, slots, inodes, names")
	for _, f := range p.Files {
		line("page file", f.Used*slotBytes, "of at most %s, grown to %s: %s (unlinked)",
			roundSize(f.Max*slotBytes), roundSize(f.Size*slotBytes), f.Name)
	}
	if len(p.Files) == 0 {
		line("page file", 0, "none")
	}
	if m.Zswapped > 0 {
		line("compressed", m.Zswap, "of the frames hold %s", roundSize(m.Zswapped))
	}
	line("files", m.FileCommit, "of at most %s", roundSize(m.FileLimit))
	line("commit", m.Commit, "of at most %s, peak %s", roundSize(m.CommitLimit), roundSize(m.CommitPeak))
	fmt.Fprintf(&b, "%-10s %9d   of at most %d\n", "inodes", l.InodesUsed, l.InodesMax)
	return b.String(), nil
}

func newCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [PATH]",
		Short: "Prove the memory manager's invariants; exit code 1 if one does not hold",
		Long: "check proves that every frame is in one state and on the list of that state, that every page table entry and\n" +
			"its frame name each other, and that commit, slots and records add up. It prints ok, or a line for each\n" +
			"invariant that does not hold.",
		Args: onePath,
		RunE: func(c *cobra.Command, args []string) error {
			p, err := locate(here(args))
			if err != nil {
				return err
			}
			text, err := p.read("check")
			if err != nil {
				return err
			}
			if _, err := c.OutOrStdout().Write(text); err != nil {
				return err
			}
			first, _ := bufio.NewReader(bytes.NewReader(text)).ReadString('\n')
			if strings.TrimSpace(first) != "ok" {
				return exitError{exitFailed, fmt.Errorf("%s: invariants are broken: this is a bug in memfs", p.path)}
			}
			return nil
		},
	}
}
