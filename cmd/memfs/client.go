package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"memfs/fs/ctl"
)

// What the verbs that look at a live mount and steer it have in common. All they know comes out of control files, and all
// they do is to write some.

// place is what a path of the command line names: a mount, and what the path is called in it.
type place struct {
	*control
	rel string // "." is the root
}

// locate finds the mount that a path lies in. A mount that does not answer is not touched.
func locate(path string) (*place, error) {
	table, err := mountTable()
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", path, reason(err))
	}
	if m, ok := mountAbove(table, abs); ok && m.fsType == fsType {
		if _, err := openMount(path, m); err != nil {
			return nil, err
		}
	}
	real, err := resolve(abs)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", path, reason(err))
	}
	m, ok := mountAbove(table, real)
	if !ok || m.fsType != fsType {
		if path == "." {
			return nil, errors.New("the current directory is not in a memfs mount; change to one, or name it")
		}
		return nil, fmt.Errorf("%s: not in a memfs mount; `memfs mount` makes one", path)
	}
	c, err := openMount(path, m)
	if err != nil {
		return nil, err
	}
	rel, err := filepath.Rel(m.mountpoint, real)
	if err != nil {
		return nil, err
	}
	return &place{c, rel}, nil
}

// resolve follows the links of a path. It gives up on file systems that do not answer.
func resolve(path string) (string, error) {
	type result struct {
		path string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		real, err := filepath.EvalSymlinks(path)
		done <- result{real, err}
	}()
	select {
	case r := <-done:
		return r.path, r.err
	case <-time.After(controlTimeout):
		return "", fmt.Errorf("no answer within %v", controlTimeout)
	}
}

// process is the folder in the control tree that the path lies in, if it lies in one: of a process, for instance.
func (p *place) process() (name string, ok bool) {
	folder, rest, _ := strings.Cut(p.rel, "/")
	if folder != filepath.Base(p.dir) || rest == "" {
		return "", false
	}
	name, _, _ = strings.Cut(rest, "/")
	return name, true
}

// controls is the folder of a file's or a directory's controls, and how the names of the latter begin.
func (p *place) controls() (dir, prefix string, err error) {
	if p.rel == "." {
		return "files", ":", nil
	}
	var shown []string
	for _, name := range strings.Split(p.rel, "/") {
		shown = append(shown, shownName(name))
	}
	dir = "files/" + strings.Join(shown, "/")
	err = p.within(controlTimeout, func() error {
		info, err := os.Lstat(filepath.Join(p.dir, "..", p.rel))
		switch {
		case err != nil:
			return fmt.Errorf("%s: %s", p.path, reason(err))
		case info.IsDir():
			prefix = ":"
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s: not a file or a directory: it has no pages", p.path)
		}
		return nil
	})
	return dir, prefix, err
}

// shownName is what a name is called in .proc/files: one that looks like a control of a directory has one more colon.
func shownName(name string) string {
	bare := strings.TrimLeft(name, ":")
	if bare == name {
		return name
	}
	if row, _ := ctl.Lookup(ctl.PerDir, ":"+bare); row < 0 {
		return name
	}
	return ":" + name
}

// show copies a control file, or its JSON twin, to w.
func (c *control) show(w io.Writer, name string, asJSON bool) error {
	if asJSON {
		name += ".json"
	}
	return c.within(longTimeout, func() error {
		f, err := os.Open(filepath.Join(c.dir, name))
		if err != nil {
			return c.fail(name, err)
		}
		defer f.Close()
		if _, err := io.Copy(w, f); err != nil {
			return c.fail(name, err)
		}
		return nil
	})
}

// longTimeout is how long a mount has for a document of any length, and for a command that moves pages.
const longTimeout = 5 * time.Minute

// tell writes lines to a ctl and returns the replies, one a line.
func (c *control) tell(name, lines string, timeout time.Duration) (replies string, err error) {
	err = c.within(timeout, func() error {
		f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_RDWR, 0)
		if err != nil {
			return c.fail(name, err)
		}
		defer f.Close()
		_, writeErr := f.WriteString(lines + "\n")
		text, readErr := io.ReadAll(f)
		replies = strings.TrimRight(string(text), "\n")
		switch {
		case replies != "":
			return nil // it says what came of it
		case writeErr != nil:
			return c.fail(name, writeErr)
		case readErr != nil:
			return c.fail(name, readErr)
		}
		return c.fail(name, errors.New("no answer"))
	})
	if err != nil {
		return "", err
	}
	return replies, nil
}

// set writes a value to a control file that takes one. It is one write: what is refused changes nothing.
func (c *control) set(name, value string) error {
	return c.within(longTimeout, func() error {
		f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_WRONLY, 0)
		if err != nil {
			return c.fail(name, err)
		}
		defer f.Close()
		if _, err := f.WriteString(value + "\n"); err != nil {
			return c.fail(name, err)
		}
		return nil
	})
}

// order has a ctl carry out one command in words. A refusal is an error.
func (c *control) order(name, command string, timeout time.Duration) (answer string, err error) {
	answer, err = c.tell(name, command, timeout)
	if err != nil {
		return "", err
	}
	if refused, ok := strings.CutPrefix(answer, "ERR "); ok {
		_, text, _ := strings.Cut(refused, " ") // after the name of the errno
		return "", fmt.Errorf("%s: %s: %s", c.path, command, text)
	}
	return answer, nil
}

// processOf finds the process that an argument names: a folder of the control tree by its path, or a process of the mount
// at mountpoint by name or number.
func processOf(argument, mountpoint string) (c *control, name string, err error) {
	if strings.ContainsRune(argument, '/') {
		p, err := locate(argument)
		if err != nil {
			return nil, "", err
		}
		if name, ok := p.process(); ok {
			return p.control, name, nil
		}
		return nil, "", fmt.Errorf("%s: not the folder of a process; those are %s/NAME", argument, p.dir)
	}
	p, err := locate(mountpoint)
	if err != nil {
		if mountpoint == "." {
			err = fmt.Errorf("process %s: %w with --mount, or write MOUNTPOINT/.proc/%s", argument, err, argument)
		}
		return nil, "", err
	}
	list, err := p.processes()
	if err != nil {
		return nil, "", err
	}
	for _, q := range list {
		if q.Folder == argument || strconv.FormatUint(q.PID, 10) == argument {
			return p.control, q.Folder, nil
		}
	}
	// A program's name, or a name without what the process is of, if only one has it.
	var like []string
	for _, q := range list {
		if bare, _, _ := strings.Cut(q.Folder, "@"); bare == argument || q.Name == argument {
			like = append(like, q.Folder)
		}
	}
	switch {
	case len(like) == 1:
		return p.control, like[0], nil
	case len(like) > 1:
		return nil, "", fmt.Errorf("%s: there are %s", argument, strings.Join(like, " and "))
	}
	if p.has(argument) { // such as self, and processes that the list does not have
		return p.control, argument, nil
	}
	return nil, "", fmt.Errorf("%s: there is no such process; `memfs ps %s` lists them, `mkdir %s/%s` starts one",
		argument, p.path, p.dir, argument)
}

// has says whether there is a folder of a process.
func (c *control) has(name string) bool {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return false
	}
	return c.within(controlTimeout, func() error {
		_, err := os.Stat(filepath.Join(c.dir, name, "ctl"))
		return err
	}) == nil
}

// processInfo is a line of ps.
type processInfo struct {
	PID    uint64 `json:"pid"`
	Name   string `json:"name"`
	Folder string `json:"folder"`
}

func (c *control) processes() ([]processInfo, error) {
	var list struct {
		Processes []processInfo `json:"processes"`
	}
	err := c.readJSON("ps.json", &list)
	return list.Processes, err
}

// output is the flags of a verb that shows something.
type output struct {
	format string
	json   bool
}

func (o *output) register(c *cobra.Command) {
	c.Flags().StringVarP(&o.format, "output", "o", "text", "`FORMAT`: text or json")
	c.Flags().BoolVar(&o.json, "json", false, "the same as -o json")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// asJSON says whether JSON is wanted.
func (o *output) asJSON() (bool, error) {
	switch o.format {
	case "json":
		return true, nil
	case "text":
		return o.json, nil
	}
	return false, usageError("-o %q: there are text and json", o.format)
}

// onePath is the cobra.PositionalArgs of the verbs that take a path, or none for the current directory.
func onePath(c *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError("%s takes one path, but %d arguments were given: %s; usage: %s",
			c.Name(), len(args), strings.Join(args, " "), c.UseLine())
	}
	return somePaths(c, args)
}

// somePaths is the same for several paths.
func somePaths(c *cobra.Command, args []string) error {
	if slices.Contains(args, "") {
		return usageError("%s: an empty path; usage: %s", c.Name(), c.UseLine())
	}
	return nil
}

// here is the path that was given, or the current directory.
func here(args []string) string {
	if len(args) == 0 {
		return "."
	}
	return args[0]
}

// mountFlag adds the flag that says which mount a verb with other arguments is about.
func mountFlag(c *cobra.Command, into *string) {
	c.Flags().StringVarP(into, "mount", "m", ".", "a `PATH` in the mount that is meant")
	_ = c.MarkFlagDirname("mount")
}

// completeProcess completes the names of processes of the mount that is meant.
func completeProcess(c *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || strings.ContainsRune(toComplete, '/') {
		return nil, cobra.ShellCompDirectiveDefault
	}
	mountpoint, err := c.Flags().GetString("mount")
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	p, err := locate(mountpoint)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	list, err := p.processes()
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var names []string
	for _, q := range list {
		names = append(names, q.Folder)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
