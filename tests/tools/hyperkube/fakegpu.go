package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// fakeGPUs is a device plugin that offers n devices named "nvidia.com/gpu".
// A container that is given some sees their names in NVIDIA_VISIBLE_DEVICES.
type fakeGPUs struct {
	api.UnimplementedDevicePluginServer
	n int
}

func (f fakeGPUs) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

func (f fakeGPUs) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	var list api.ListAndWatchResponse
	for i := range f.n {
		list.Devices = append(list.Devices, &api.Device{ID: fmt.Sprintf("GPU-fake-%d", i), Health: api.Healthy})
	}
	if err := stream.Send(&list); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (f fakeGPUs) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	var response api.AllocateResponse
	for _, c := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(c.DevicesIds, ",")},
		})
	}
	return &response, nil
}

// runFakeGPUs serves the plugin and registers it with the kubelet, again each
// time that a restarted kubelet has made its socket anew (and removed ours).
func runFakeGPUs(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	const name = "fake-gpu.sock"
	socket := filepath.Join(api.DevicePluginPath, name)
	for {
		for { // wait for a kubelet
			if _, err := os.Stat(api.KubeletSocket); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		os.Remove(socket)
		listener, err := net.Listen("unix", socket)
		if err != nil {
			return err
		}
		server := grpc.NewServer()
		api.RegisterDevicePluginServer(server, fakeGPUs{n: n})
		go server.Serve(listener)
		if err := register(name); err != nil {
			fmt.Fprintln(os.Stderr, "register:", err)
		} else {
			fmt.Fprintln(os.Stderr, "registered", n, "fake GPUs")
			for {
				if _, err := os.Stat(socket); err != nil {
					break
				}
				time.Sleep(500 * time.Millisecond)
			}
		}
		server.Stop()
		time.Sleep(200 * time.Millisecond)
	}
}

func register(endpoint string) error {
	conn, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(conn).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: endpoint, ResourceName: "nvidia.com/gpu",
	})
	return err
}
